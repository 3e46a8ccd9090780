"""ViTKD: a student that mimics its teacher's first blocks and generates the last one from half of its own patches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from singer_hf.distillation.distiller import DistillerOutput, SingerDistiller
from singer_hf.distillation.summary import distillation_plan
from singer_hf.distillation.teacher_input import Normalization
from singer_hf.training.arguments import check_generation_settings
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.vit.tokens import map_to_tokens, tokens_to_map

GENERATOR = "generator"


@dataclass
class ViTKDOutput(DistillerOutput):
    """What a ViTKD step computes: ``kd_loss`` is the mimicking term, the losses of a refinement are 0.

    Attributes:
        generation_loss: Mean squared error of the generated tokens over the masked patches, unweighted, scalar.
    """

    generation_loss: Tensor | None = None


class ViTKDDistiller(SingerDistiller):
    """Distils a bare teacher as ViTKD does (Yang et al., arXiv 2209.02432): the method SiNGER is compared with.

    Shallow blocks are mimicked: MSE between the teacher's and the linearly projected student's tokens. The deepest one
    is generated: a share of the student's projected patch tokens is replaced by a learned token, two convolutions
    over the patch grid predict the teacher's tokens from the rest, and the MSE counts on the replaced patches.

    The paper's code weighs sums, ours are means. Per image it takes α = 3e-5 times the squared error summed over both
    mimicked blocks, N patches and D_T dimensions: 2αND_T times our mean. Of the deepest block it takes β = 3e-6 / λ
    times the sum over the λN masked patches: βND_T times our mean. At N = 196 and D_T = 384 that is 4.5 and 0.23,
    beside a cross-entropy. Here no other loss stands beside them and AdamW undoes a common factor: what counts is
    their ratio, β / 2α = 0.05 at any N and D_T, hence the default weights 1 and 0.05. ``kd_weight`` = 2αND_T and
    ``generation_weight`` = βND_T give the sums.

    What differs from the paper's code: mimicking takes the class tokens too, as L_KD does everywhere here (theirs:
    patches only); the deepest tokens are read before the final norm (theirs: behind it); there is always a projector
    (theirs: none between equal widths); grids may differ; without labels there is no cross-entropy. Generator and mask
    token are trained as there; the comparison released with SiNGER leaves them as they were drawn.

    Args:
        student: A vision transformer, or a model that returns feature maps (CNNs, Swin).
        teacher: A vision transformer without SiNGER adapters.
        teacher_layers: Blocks of the teacher, 0-based, negatives allowed: the deepest is generated, the others are
            mimicked. None: ``[0, 1, L - 1]``.
        student_layers: Student blocks, one per teacher block. None: ``[0, 1, last]``; for given ``teacher_layers`` by
            relative depth.
        kd_weight: Weight of the mimicking term, >= 0.
        generation_weight: Weight of the generation term, >= 0.
        mask_ratio: λ in (0, 1): the share of the patches that is replaced, drawn anew for every image. In eval mode
            the same patches are replaced in all images, so that losses can be compared.
        image_size: (height, width) of the student's images in pixels. None: what its config says, else 224 x 224.
        student_normalization: (mean, std) with which ``pixel_values`` come, 3 channels each.
        teacher_normalization: (mean, std) that the teacher expects. None for either: the images are left as they come.

    Attributes:
        projectors: ``str(teacher block)`` -> ``nn.Linear``, and ``"generator"`` -> :class:`MaskedGenerator`.
        evaluation_mask: (1, N), the patches that are replaced in eval mode.

    Raises:
        ValueError: If an argument is out of range, the teacher is refined or has too few blocks, or the student does
            not fit.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        teacher_layers: Sequence[int] | None = None,
        student_layers: Sequence[int] | None = None,
        kd_weight: float = 1.0,
        generation_weight: float = 0.05,
        mask_ratio: float = 0.5,
        image_size: tuple[int, int] | None = None,
        student_normalization: Normalization | None = None,
        teacher_normalization: Normalization | None = None,
    ) -> None:
        check_generation_settings(mask_ratio, generation_weight)
        _check_bare(teacher)
        super().__init__(
            student,
            teacher,
            teacher_layers=teacher_layers,
            student_layers=[0, 1, -1] if teacher_layers is None and student_layers is None else student_layers,
            kd_weight=kd_weight,
            image_size=image_size,
            student_normalization=student_normalization,
            teacher_normalization=teacher_normalization,
        )
        self.generation_weight, self.mask_ratio = generation_weight, mask_ratio
        rows, columns = self.teacher_input.grid
        mask = random_mask(1, rows * columns, mask_ratio, generator=torch.Generator().manual_seed(0))
        device = self.teacher_view.patch_embedding.weight.device
        self.register_buffer("evaluation_mask", mask.to(device), persistent=False)

    def forward(self, pixel_values: Tensor) -> ViTKDOutput:
        """One step on images (B, 3, H, W), normalised for the student."""
        student_tokens = self.student_reader.read(pixel_values)
        raw = self.read_teacher(pixel_values)
        mimicking = self._kd_loss({i: raw[i] for i in self.teacher_layers[:-1]}, student_tokens)
        generation = self._generation_loss(raw, student_tokens)
        loss = self.kd_weight * mimicking + self.generation_weight * generation
        zero = torch.zeros_like(mimicking)
        return ViTKDOutput(loss=loss, kd_loss=mimicking, outlier_loss=zero, info_loss=zero, generation_loss=generation)

    def describe(self) -> str:
        """The plan of the distillation in words."""
        *mimicked, generated = self.teacher_layers
        return distillation_plan(
            self,
            f"ViTKD, no refinement: teacher blocks {mimicked} mimicked, block {generated} generated with "
            f"{int(self.evaluation_mask.sum())} of {self.evaluation_mask.shape[1]} patches masked",
        )

    def _generation_loss(self, raw: dict[int, Tensor], student_tokens: dict[int, Tensor]) -> Tensor:
        last = self.teacher_layers[-1]
        patches = self._projected(last, student_tokens)[:, self._common_class_tokens :]
        mask = self._mask(*patches.shape[:2], patches.device)
        generated = self.projectors[GENERATOR](patches, mask, self.teacher_input.grid)
        return masked_loss(generated, self._patches(raw[last]), mask)

    def _mask(self, batch_size: int, num_patches: int, device: torch.device) -> Tensor:
        if self.training:
            return random_mask(batch_size, num_patches, self.mask_ratio, device)
        return self.evaluation_mask.expand(batch_size, -1)

    def _choose_teacher_layers(self, given: Sequence[int] | None) -> list[int]:
        number = self.teacher_view.num_blocks
        if given is None and number < 3:
            raise ValueError(
                "`teacher` must have at least 3 blocks for ViTKD, two to mimic and the last to generate, got "
                f"{number}; name its blocks with `teacher_layers`"
            )
        layers = super()._choose_teacher_layers([0, 1, number - 1] if given is None else given)
        if len(layers) < 2:
            raise ValueError(
                "`teacher_layers` must name at least two blocks for ViTKD, the deepest to generate and the others to "
                f"mimic, got {list(given)}"
            )
        return layers

    def _make_projectors(self) -> nn.ModuleDict:
        projectors = super()._make_projectors()
        device, width = self.teacher_view.patch_embedding.weight.device, self.teacher_view.hidden_size
        projectors[GENERATOR] = MaskedGenerator(width, device)
        return projectors


class MaskedGenerator(nn.Module):
    """Predicts all patch tokens of a feature map in which some were replaced by a learned token.

    Args:
        width: Token width D.
        device: Device of the weights.
    """

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width, device=device))
        self.conv_in = nn.Conv2d(width, width, kernel_size=3, padding=1, device=device)
        self.conv_out = nn.Conv2d(width, width, kernel_size=3, padding=1, device=device)

    def forward(self, patch_tokens: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (B, N, D) on ``grid``, replaced where ``mask`` (B, N) is True -> predicted tokens (B, N, D)."""
        visible = torch.where(mask.unsqueeze(-1), self.mask_token, patch_tokens)
        return map_to_tokens(self.conv_out(F.relu(self.conv_in(tokens_to_map(visible, grid)))))


def random_mask(
    batch_size: int,
    num_patches: int,
    ratio: float,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, N), True at ``round(ratio * N)`` patches of each image, at least one.

    Without a generator it draws from torch's global state, which a checkpoint of the Trainer restores.
    """
    order = torch.rand(batch_size, num_patches, device=device, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < max(round(ratio * num_patches), 1)


def masked_loss(generated: Tensor, expected: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of tokens (B, N, D) over those where ``mask`` (B, N) is True; float32, no host sync."""
    errors = F.mse_loss(generated.float(), expected.float(), reduction="none").mean(dim=-1)
    return (errors * mask).sum() / mask.sum()


def _check_bare(teacher: nn.Module) -> None:
    adapted = sorted(find_singer_layers(teacher))
    if adapted:
        raise ValueError(
            f"`teacher` must have no SiNGER adapters for ViTKD, it has some at blocks {adapted}; leave out the "
            'adapter or distil with `distillation="features"`'
        )
