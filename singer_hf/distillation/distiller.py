"""Teacher, student and projectors in one module; its forward pass reads as the method does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from singer_hf.distillation.block_pairs import pair_student_layers
from singer_hf.distillation.losses import check_loss_settings, kd_loss, outlier_loss
from singer_hf.distillation.losses import info_loss as gram_info_loss
from singer_hf.distillation.student_features import read_student
from singer_hf.distillation.summary import distillation_plan
from singer_hf.distillation.teacher_input import Normalization, TeacherInput
from singer_hf.tuner.layer import SingerLayer, find_singer_layers, raw_features
from singer_hf.vit.block_indices import default_layers, resolve_layers
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import keep_tokens, resize_tokens


@dataclass
class DistillerOutput(ModelOutput):
    """What a distillation step computes; every component is unweighted and averaged over the distilled blocks.

    Attributes:
        loss: Σ weight x component, scalar.
        kd_loss: L_KD, scalar.
        outlier_loss: L_outlier, scalar; 0 for a teacher without adapters, whose targets nothing trains.
        info_loss: L_info, scalar; 0 for a teacher without adapters and with ``info_weight=0``, where it is left out.
    """

    loss: Tensor | None = None
    kd_loss: Tensor | None = None
    outlier_loss: Tensor | None = None
    info_loss: Tensor | None = None


class Refiner(Protocol):
    """What cleans a teacher's tokens: an adapter's layer, or another clean-up (:mod:`singer_hf.baselines.refiners`)."""

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) with their patches cleaned; prefix tokens as they came."""


class SingerDistiller(nn.Module):
    """Distils refined teacher features into a student (SiNGER, arXiv 2509.20986, section 3).

    The teacher is frozen in place (its weights stop requiring gradients) and stays in eval mode. Its own stream is not
    changed: block l + 1 of the main pass reads the raw features, and runs once more on the refined ones for L_info.

    Args:
        student: A vision transformer, or a model that returns feature maps (CNNs, Swin).
        teacher: A vision transformer with SiNGER adapters, as from ``get_peft_model``, or a bare one: plain
            multi-layer feature distillation (FitNet) without refinement.
        refiner: Another clean-up for a teacher without adapters, used behind every distilled block.
        teacher_layers: Distilled blocks of a bare teacher, 0-based, negatives allowed; default as in SingerConfig. A
            teacher with adapters is distilled where the adapters are.
        student_layers: Student blocks, one per distilled teacher block, 0-based, negatives allowed. None: by relative
            depth, the last one being the student's last block.
        kd_weight: Weight of L_KD, >= 0.
        outlier_weight: λ_outlier, >= 0.
        info_weight: λ_info, >= 0.
        outlier_quantile: γ in (0, 1): the share of an image's patches whose norm is left alone.
        info_loss: ``"gram"`` (paper) or ``"reference"`` (the released code's variant).
        detach_refined: Whether L_KD leaves the adapter alone.
        image_size: (height, width) of the student's images in pixels. None: what its config says, else 224 x 224.
        student_normalization: (mean, std) with which ``pixel_values`` come, 3 channels each.
        teacher_normalization: (mean, std) that the teacher expects. None for either: the images are left as they come.

    Attributes:
        teacher_layers: Distilled blocks of the teacher, ascending.
        student_layers: The student block for each of them.
        projectors: ``str(teacher block)`` -> ``nn.Linear`` from the student's to the teacher's width.

    Raises:
        ValueError: If an argument is out of range, the student is no vision model, it has fewer blocks than are
            distilled, or the patch grids cannot be matched.
    """

    # The Trainer asks for these two.
    accepts_loss_kwargs = False
    main_input_name = "pixel_values"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        refiner: Refiner | None = None,
        teacher_layers: Sequence[int] | None = None,
        student_layers: Sequence[int] | None = None,
        kd_weight: float = 1.0,
        outlier_weight: float = 0.01,
        info_weight: float = 1.0,
        outlier_quantile: float = 0.97,
        info_loss: str = "gram",
        detach_refined: bool = False,
        image_size: tuple[int, int] | None = None,
        student_normalization: Normalization | None = None,
        teacher_normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        check_loss_settings(kd_weight, outlier_weight, info_weight, outlier_quantile, info_loss)
        self.kd_weight, self.outlier_weight, self.info_weight = kd_weight, outlier_weight, info_weight
        self.outlier_quantile, self.info_loss, self.detach_refined = outlier_quantile, info_loss, detach_refined
        self.student, self.teacher = student, teacher
        # While set, L_KD counts nothing; the student stays part of the graph, as several processes need it.
        self.warms_up = False
        self.teacher_view, self.student_reader = view_vit(teacher), read_student(student, image_size)
        self._singer_layers = find_singer_layers(teacher)
        self.teacher_layers = self._choose_teacher_layers(teacher_layers)
        self.refiner = refiner
        self._refiners = self._choose_refiners(refiner)
        self.student_layers = pair_student_layers(
            self.teacher_layers, self.teacher_view.num_blocks, self.student_reader.num_blocks, student_layers
        )
        size = image_size or self.student_reader.image_size
        self.student_grids = {
            i: self.student_reader.grid(j, size) for i, j in zip(self.teacher_layers, self.student_layers, strict=True)
        }
        self.teacher_input = TeacherInput(
            self.teacher_view,
            size,
            self.student_grids[self.teacher_layers[-1]],
            student_normalization,
            teacher_normalization,
        )
        self.projectors = self._make_projectors()
        self._freeze_teacher()
        self._start_capture()

    @property
    def _no_split_modules(self) -> list[str]:
        # FSDP shards modules of these classes one by one: the blocks themselves, not the adapters around them.
        views = [self.teacher_view, getattr(self.student_reader, "view", None)]
        return sorted({type(view.blocks[0]).__name__ for view in views if view is not None})

    @property
    def has_adapters(self) -> bool:
        """Whether the refinement is trained along."""
        return bool(self._singer_layers)

    @property
    def refines(self) -> bool:
        """Whether the targets differ from the teacher's raw features."""
        return bool(self._refiners)

    @property
    def singer_layers(self) -> dict[int, SingerLayer]:
        """The teacher's wrapped blocks by index; empty for a bare teacher."""
        return find_singer_layers(self.teacher)

    def forward(self, pixel_values: Tensor) -> DistillerOutput:
        """One step on images (B, 3, H, W), normalised for the student."""
        student_tokens = self.student_reader.read(pixel_values)
        raw = self.read_teacher(pixel_values)
        refined = self.refine(raw)
        kd = self._kd_loss(refined, student_tokens)
        outlier = info = torch.zeros_like(kd)
        if self.has_adapters:
            outlier = self._outlier_loss(refined)
            if self.info_weight:
                info = self._info_loss(raw, refined)
        kd_weight = 0.0 if self.warms_up else self.kd_weight
        loss = kd_weight * kd + self.outlier_weight * outlier + self.info_weight * info
        return DistillerOutput(loss=loss, kd_loss=kd, outlier_loss=outlier, info_loss=info)

    @torch.no_grad()
    def read_teacher(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """F_l: raw tokens (B, P+N, D_T) after the distilled blocks and those behind them, for the student's images."""
        with raw_features(self._singer_layers.values()):
            captured = self._teacher_capture(self.teacher_input(pixel_values))
        self._calls = captured.calls
        return captured.outputs

    def refine(self, raw: dict[int, Tensor]) -> dict[int, Tensor]:
        """F̂_l of the distilled blocks; gradients reach the adapters only."""
        return {i: self._refiners[i].refine(raw[i]) if self.refines else raw[i] for i in self.teacher_layers}

    def replay_next(self, block: int, hidden_states: Tensor) -> Tensor:
        """What block ``block + 1`` makes of other tokens (B, P+N, D_T), in the call that the last batch made of it."""
        return self._calls[block + 1].replay(self.teacher_view.blocks[block + 1], hidden_states)

    def describe(self) -> str:
        """The plan of the distillation in words."""
        return distillation_plan(self)

    def train(self, mode: bool = True) -> "SingerDistiller":
        """Sets the mode of student and projectors; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def activation_checkpointing_enable(self, *args: object, **kwargs: object) -> None:
        """Turns activation checkpointing on in the student; the teacher's main pass keeps no activations."""
        self.student.activation_checkpointing_enable(*args, **kwargs)

    def _kd_loss(self, refined: dict[int, Tensor], student_tokens: dict[int, Tensor]) -> Tensor:
        """L_KD = mean over blocks of MSE(F̂, P(F^S)): the patches and the class tokens that both sides have."""
        losses = []
        for i, tokens in refined.items():
            target = keep_tokens(tokens, self._common_class_tokens, self.teacher_view.num_prefix_tokens)
            projected = self._projected(i, student_tokens)
            losses.append(kd_loss(target.detach() if self.detach_refined else target, projected))
        return torch.stack(losses).mean()

    @property
    def _common_class_tokens(self) -> int:
        return min(self.student_reader.num_class_tokens, self.teacher_view.num_class_tokens)

    def _projected(self, block: int, student_tokens: dict[int, Tensor]) -> Tensor:
        """P(F^S) for a teacher block, (B, common class tokens + N, D_T) on the teacher's grid."""
        layer = self.student_layers[self.teacher_layers.index(block)]
        common, own = self._common_class_tokens, self.student_reader.num_class_tokens
        tokens = keep_tokens(student_tokens[layer], common, own)
        if self.student_grids[block] != self.teacher_input.grid:
            patches = resize_tokens(tokens[:, common:], self.student_grids[block], self.teacher_input.grid)
            tokens = torch.cat([tokens[:, :common], patches], dim=1)
        return self.projectors[str(block)](tokens)

    def _outlier_loss(self, refined: dict[int, Tensor]) -> Tensor:
        losses = [outlier_loss(self._patches(tokens), self.outlier_quantile) for tokens in refined.values()]
        return torch.stack(losses).mean()

    def _info_loss(self, raw: dict[int, Tensor], refined: dict[int, Tensor]) -> Tensor:
        return torch.stack([self._info_of_block(i, raw, refined) for i in self.teacher_layers]).mean()

    def _info_of_block(self, block: int, raw: dict[int, Tensor], refined: dict[int, Tensor]) -> Tensor:
        """L_info of one block, by what the next block makes of it; of the last block by the features themselves."""
        released = self.info_loss == "reference"
        if block + 1 < self.teacher_view.num_blocks:
            read, expected = self.replay_next(block, refined[block]), raw[block + 1]
            if released:
                return F.mse_loss(read.float(), expected.float())
        else:
            read, expected = refined[block], raw[block]
            if released and len(self.teacher_layers) > 1:
                expected = refined[self.teacher_layers[-2]]
        return gram_info_loss(self._patches(read), self._patches(expected))

    def _patches(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[:, self.teacher_view.num_prefix_tokens :]

    def _choose_teacher_layers(self, given: Sequence[int] | None) -> list[int]:
        if not self.has_adapters:
            number = self.teacher_view.num_blocks
            return default_layers(number) if given is None else sorted(resolve_layers("teacher_layers", given, number))
        if given is not None and sorted(given) != sorted(self._singer_layers):
            raise ValueError(
                f"`teacher_layers` must be left out for a teacher with adapters, which is distilled where they are "
                f"({sorted(self._singer_layers)}), got {list(given)}"
            )
        return sorted(self._singer_layers)

    def _choose_refiners(self, refiner: Refiner | None) -> Mapping[int, Refiner]:
        if refiner is None:
            return self._singer_layers
        if self.has_adapters:
            raise ValueError("`refiner` must be left out for a teacher with SiNGER adapters, which refine already")
        if not callable(getattr(refiner, "refine", None)):
            raise ValueError(f"`refiner` must have a method refine(hidden_states), got {type(refiner).__name__}")
        return dict.fromkeys(self.teacher_layers, refiner)

    def _make_projectors(self) -> nn.ModuleDict:
        device, width = self.teacher_view.patch_embedding.weight.device, self.teacher_view.hidden_size
        pairs = zip(self.teacher_layers, self.student_layers, strict=True)
        return nn.ModuleDict(
            {str(i): nn.Linear(self.student_reader.widths[j], width, device=device) for i, j in pairs}
        )

    def _freeze_teacher(self) -> None:
        adapters = {id(p) for layer in self._singer_layers.values() for p in layer.adapter_parameters()}
        for parameter in self.teacher.parameters():
            if id(parameter) not in adapters:
                parameter.requires_grad_(False)
        self.teacher.eval()

    def _start_capture(self) -> None:
        """Chooses what is read; nothing behind the last distilled block's reader is ever computed."""
        behind = [i + 1 for i in self.teacher_layers if i + 1 < self.teacher_view.num_blocks and self.refines]
        self._teacher_capture = FeatureCapture(self.teacher_view, [*self.teacher_layers, *behind], calls=behind)
        self.student_reader.select(self.student_layers)
