"""ViTKD: a student that mimics its teacher's first blocks and generates the last one from half of its own patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from singer_hf.baselines.method import Method
from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.losses import check_weights
from singer_hf.distillation.trained_module import DistillerOutput, TeacherStep
from singer_hf.vit.block_indices import resolve_layers
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import map_to_tokens, tokens_to_map


@dataclass(frozen=True)
class ViTKD(Method):
    """Distils a bare teacher as ViTKD does (Yang et al., arXiv 2209.02432).

    Args:
        generation_weight: Weight of the generation term, >= 0.
        mask_ratio: λ in (0, 1): the share of the patches that is replaced.

    Raises:
        ValueError: If a setting is out of its range.
    """

    name = "vitkd"
    title = "ViTKD"
    card = CardMethod(
        "vitkd",
        "with ViTKD ([paper](https://arxiv.org/abs/2209.02432)): the student matched the teacher's features of "
        "shallow blocks, and those of its deepest block were generated from the student's with a part of its patches "
        "masked; high-norm tokens were not refined.",
        "ViTKD",
    )

    # Its terms are squared errors in the teacher's own units, as published.
    objective_fields = ("kd_weight", "teacher_layers", "student_layers")
    training_fields = objective_fields

    generation_weight: float = 0.05
    mask_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must lie in (0, 1), got {self.mask_ratio!r}")
        check_weights(generation_weight=self.generation_weight)

    def make_distiller(self, student: nn.Module, teacher: nn.Module, args: Any, **inputs: Any) -> "ViTKDDistiller":
        """Returns a :class:`ViTKDDistiller`; see :meth:`Method.make_distiller`."""
        return ViTKDDistiller(student, teacher, self, **self.objective(args), **inputs)

    def describe(self, distiller: "ViTKDDistiller") -> str:
        """The method in a few words."""
        (*mimicked, generated), mask = distiller.teacher_layers, distiller.evaluation_mask
        return (
            f"ViTKD, no refinement: teacher blocks {mimicked} mimicked, block {generated} generated with "
            f"{int(mask.sum())} of {mask.shape[1]} patches masked"
        )


@dataclass
class ViTKDOutput(DistillerOutput):
    """Losses of one ViTKD step; ``kd_loss`` is the mimicking term.

    Attributes:
        generation_loss: Mean squared error of the generated tokens over the masked patches, unweighted, scalar.
    """

    generation_loss: Tensor | None = None


class ViTKDDistiller(FeatureDistiller):
    """Student, teacher, projectors and generator of ViTKD in one module.

    Shallow blocks are mimicked: MSE between the teacher's and the linearly projected student's tokens. The deepest one
    is generated: a share of the student's projected patch tokens is replaced by a learned token, two convolutions
    over the patch grid predict the teacher's tokens from the rest, and the MSE is taken over the replaced patches.

    The paper's code weighs sums, ours are means. Per image it takes α = 3e-5 times the squared error summed over both
    mimicked blocks, N patches and D_T dimensions: 2αND_T times our mean. Of the deepest block it takes β = 3e-6 / λ
    times the sum over the λN masked patches: βND_T times our mean. At N = 196 and D_T = 384 that is 4.5 and 0.23,
    beside a cross-entropy. There is no other loss here and AdamW is invariant to a common factor, so only the ratio
    matters: β / 2α = 0.05 at any N and D_T, hence the default weights 1 and 0.05. ``kd_weight`` = 2αND_T and
    ``generation_weight`` = βND_T give the sums.

    Differences from the paper's code: mimicking includes the class tokens, as L_KD does everywhere here (theirs:
    patches only); the deepest tokens are those before the final norm (theirs: after it); there is always a projector
    (theirs: none between equal widths); grids may differ; without labels there is no cross-entropy. Generator and mask
    token are trained as there; the comparison released with SiNGER leaves them at their random initial values.

    Args:
        student: A vision transformer, or a model that returns feature maps (CNNs, Swin).
        teacher: A vision transformer without SiNGER adapters.
        settings: The settings of the method.
        teacher_layers: Blocks of the teacher, 0-based, negatives allowed: the deepest is generated, the others are
            mimicked. None: ``[0, 1, L - 1]``.
        student_layers: Student blocks, one per teacher block. None: ``[0, 1, last]``; for given ``teacher_layers`` by
            relative depth.
        **kwargs: ``kd_weight`` (of the mimicking term), ``image_size`` and the normalisations of
            :class:`FeatureDistiller`.

    Attributes:
        generator: The :class:`MaskedGenerator`.
        evaluation_mask: (1, N), the patches that are replaced in eval mode, the same in all images, so that losses
            can be compared. In training they are drawn anew for every image.

    Raises:
        ValueError: If an argument is out of range, the teacher has adapters or too few blocks, or the student does
            not fit.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        settings: ViTKD | None = None,
        *,
        teacher_layers: Sequence[int] | None = None,
        student_layers: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        layers = _teacher_layers(view_vit(teacher).num_blocks, teacher_layers)
        if teacher_layers is None and student_layers is None:
            student_layers = [0, 1, -1]
        kwargs |= {"kd_loss": "mse", "target_norm": "none"}
        super().__init__(student, teacher, teacher_layers=layers, student_layers=student_layers, **kwargs)
        self.settings = settings or ViTKD()
        device = self.teacher_view.patch_embedding.weight.device
        self.generator = MaskedGenerator(self.teacher_view.hidden_size, device)
        rows, columns = self.teacher_input.grid
        mask = random_mask(1, rows * columns, self.settings.mask_ratio, generator=torch.Generator().manual_seed(0))
        self.register_buffer("evaluation_mask", mask.to(device), persistent=False)

    @property
    def trained_modules(self) -> dict[str, nn.Module]:
        """Projectors and generator, by the name of the folder they are saved in."""
        return {**super().trained_modules, "generator": self.generator}

    @property
    def loss_weights(self) -> dict[str, float]:
        """Name of each component of the loss in the log -> its weight in the sum."""
        return {**super().loss_weights, "generation_loss": self.settings.generation_weight}

    def losses(self, student: Mapping[int, Tensor], teacher: TeacherStep) -> ViTKDOutput:
        """Computes both terms from student tokens (B, C+N, D_S) by block; see :meth:`FeatureDistiller.losses`."""
        mimicking = self.kd_loss({i: teacher.targets[i] for i in self.teacher_layers[:-1]}, student)
        generation = self.generation_loss(teacher.targets[self.teacher_layers[-1]], student)
        loss = self.kd_weight * mimicking + self.settings.generation_weight * generation
        return ViTKDOutput(loss=loss, kd_loss=mimicking, generation_loss=generation)

    def generation_loss(self, target: Tensor, student: dict[int, Tensor]) -> Tensor:
        """Mean squared error of the generated tokens over the masked patches, scalar.

        Args:
            target: Tokens (B, P+N, D_T) of the teacher's deepest block.
            student: Student block -> tokens (B, C+N, D_S).
        """
        patches = self.project(self.pairs[-1], student)[:, self.num_common_class_tokens :]
        mask = self._mask(*patches.shape[:2], patches.device)
        generated = self.generator(patches, mask, self.teacher_input.grid)
        return masked_loss(generated, target[:, self.teacher_view.num_prefix_tokens :], mask)

    def _mask(self, batch_size: int, num_patches: int, device: torch.device) -> Tensor:
        if self.training:
            return random_mask(batch_size, num_patches, self.settings.mask_ratio, device)
        return self.evaluation_mask.expand(batch_size, -1)


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
        """Predicts all patch tokens, (B, N, D).

        Args:
            patch_tokens: Patch tokens (B, N, D).
            mask: True at the patches that are replaced by the mask token, (B, N).
            grid: (rows, columns) of the patches.
        """
        visible = torch.where(mask.unsqueeze(-1), self.mask_token, patch_tokens)
        return map_to_tokens(self.conv_out(F.relu(self.conv_in(tokens_to_map(visible, grid)))))


def random_mask(
    batch_size: int,
    num_patches: int,
    ratio: float,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws ``round(ratio * N)`` patches of each image, at least one: bool (B, N).

    Args:
        batch_size: B.
        num_patches: N.
        ratio: Share of the patches, in (0, 1).
        device: Device of the mask.
        generator: Source of randomness. None: torch's global state, which a checkpoint of the Trainer restores.
    """
    order = torch.rand(batch_size, num_patches, device=device, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < max(round(ratio * num_patches), 1)


def masked_loss(generated: Tensor, expected: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the masked tokens; float32 inside, no host synchronisation.

    Args:
        generated: Tokens (B, N, D).
        expected: Tokens (B, N, D).
        mask: True at the tokens that count, (B, N).
    """
    errors = F.mse_loss(generated.float(), expected.float(), reduction="none").mean(dim=-1)
    return (errors * mask).sum() / mask.sum()


def _teacher_layers(num_blocks: int, given: Sequence[int] | None) -> list[int]:
    if given is None and num_blocks < 3:
        raise ValueError(
            "`teacher` must have at least 3 blocks for ViTKD, two to mimic and the last to generate, got "
            f"{num_blocks}; name its blocks with `teacher_layers`"
        )
    layers = sorted(resolve_layers("teacher_layers", [0, 1, num_blocks - 1] if given is None else given, num_blocks))
    if len(layers) < 2:
        raise ValueError(
            "`teacher_layers` must name at least two blocks for ViTKD, the deepest to generate and the others to "
            f"mimic, got {list(given)}"
        )
    return layers
