"""Multi-layer feature distillation (FitNet): teacher, student and projectors in one module."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from singer_hf.distillation.block_pairs import BlockPair, pair_student_layers
from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.losses import check_kd_settings, kd_loss
from singer_hf.distillation.student_features import check_two_models, make_student_extractor
from singer_hf.distillation.target_norm import make_target_norm
from singer_hf.distillation.teacher_input import Normalization, TeacherInput
from singer_hf.distillation.trained_module import DistillerOutput, TeacherStep, TrainedModule
from singer_hf.tuner.layer import SingerLayer, find_singer_layers, raw_features
from singer_hf.vit.block_indices import default_layers, resolve_layers
from singer_hf.vit.features import CapturedFeatures, FeatureCapture
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import keep_tokens, resize_tokens


class Refiner(Protocol):
    """An object that refines a teacher's tokens: an adapter's layer or another clean-up method."""

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> the same shape with refined patch tokens and unchanged prefix tokens."""


class FeatureDistiller(TrainedModule):
    """Distils the features of several teacher blocks into a student (FitNet, arXiv 1412.6550, over several blocks).

    The teacher is frozen in place (its weights stop requiring gradients) and stays in eval mode.

    Args:
        student: A vision transformer, or a model that returns feature maps (CNNs, Swin).
        teacher: A vision transformer without SiNGER adapters.
        refiners: Clean-up method for the targets: one object for all distilled blocks, or one by teacher block.
            None: the targets are the raw features.
        teacher_layers: Distilled blocks of the teacher, 0-based, negatives allowed. None: as in SingerConfig.
        student_layers: Student blocks, one per distilled teacher block, 0-based, negatives allowed. None: by relative
            depth, the last one being the student's last block.
        kd_weight: Weight of L_KD, >= 0.
        kd_loss: Distance of L_KD, see :func:`singer_hf.distillation.losses.kd_loss`.
        target_norm: Normalisation of the targets of L_KD: ``"none"`` (paper), ``"token"`` (LayerNorm without gain and
            bias), ``"channel"`` (standardised, statistics of inliers) or ``"channel_token"`` (``"token"`` of F / σ).
        image_size: (height, width) of the student's images in pixels. None: the size in its config, else 224 x 224.
        student_normalization: (mean, std) of ``pixel_values``, 3 channels each.
        teacher_normalization: (mean, std) that the teacher expects. None for either: the images are not re-normalised.
        teacher_input: That of another student, whose images this one shares. None: one that suits this student.

    Attributes:
        pairs: The distilled teacher blocks, ascending, with their student blocks.
        refiners: Teacher block -> its refiner; empty where the targets are the raw features.
        projectors: ``str(teacher block)`` -> ``nn.Linear`` from the student's to the teacher's width.

    Raises:
        ValueError: If an argument is out of range, the student is no vision model, it has fewer blocks than are
            distilled, the patch grids cannot be matched, or the teacher has SiNGER adapters.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        refiners: Refiner | Mapping[int, Refiner] | None = None,
        teacher_layers: Sequence[int] | None = None,
        student_layers: Sequence[int] | None = None,
        kd_weight: float = OBJECTIVE["kd_weight"],
        kd_loss: str = OBJECTIVE["kd_loss"],
        target_norm: str = OBJECTIVE["target_norm"],
        image_size: tuple[int, int] | None = None,
        student_normalization: Normalization | None = None,
        teacher_normalization: Normalization | None = None,
        teacher_input: TeacherInput | None = None,
    ) -> None:
        super().__init__()
        check_kd_settings(kd_weight, kd_loss, target_norm)
        self.kd_weight, self.kd_kind, self.target_norm = kd_weight, kd_loss, target_norm
        check_two_models(student, teacher)
        self.student, self.teacher = student, teacher
        self.teacher_view = view_vit(teacher)
        self.student_extractor = make_student_extractor(student, image_size)
        size = image_size or self.student_extractor.image_size
        self.pairs = self._pair_blocks(teacher_layers, student_layers, size)
        self.refiners = self._refiners_by_block(refiners)
        self.teacher_input = teacher_input or TeacherInput(
            self.teacher_view, size, self.pairs[-1].grid, student_normalization, teacher_normalization
        )
        self.projectors = self._make_projectors()
        self.target_norms = self._make_target_norms()
        self._freeze_teacher()
        following = [i + 1 for i in self.refiners if i + 1 < self.teacher_view.num_blocks]  # replayed for L_info
        captured = [*self.teacher_layers, *self.refiners, *following]
        self._teacher_capture = FeatureCapture(self.teacher_view, captured, calls=following)
        self.student_extractor.select(self.student_layers)

    @property
    def teacher_layers(self) -> list[int]:
        """Distilled blocks of the teacher, ascending."""
        return [pair.teacher for pair in self.pairs]

    @property
    def student_layers(self) -> list[int]:
        """The student block for each distilled teacher block."""
        return [pair.student for pair in self.pairs]

    @property
    def num_common_class_tokens(self) -> int:
        """Number of class tokens that both student and teacher have."""
        return min(self.student_extractor.num_class_tokens, self.teacher_view.num_class_tokens)

    @property
    def singer_layers(self) -> dict[int, SingerLayer]:
        """The refiners that are SiNGER adapters, by teacher block; empty for a bare teacher."""
        return {i: refiner for i, refiner in self.refiners.items() if isinstance(refiner, SingerLayer)}

    def forward(self, pixel_values: Tensor) -> DistillerOutput:
        """Computes the loss of images (B, 3, H, W), normalised for the student."""
        student = self.student_extractor(pixel_values)
        return self.losses(student, self.teacher_step(pixel_values))

    def losses(self, student: Mapping[int, Tensor], teacher: TeacherStep) -> DistillerOutput:
        """Computes the losses of one step; those of the teacher's side are part of the sum.

        Args:
            student: Student block -> tokens (B, C+N, D_S).
            teacher: The teacher's side of the step, for the same images.
        """
        kd = self.kd_loss(teacher.targets, student)
        return DistillerOutput(loss=self.kd_weight * kd, kd_loss=kd)

    def teacher_step(self, pixel_values: Tensor) -> TeacherStep:
        """Computes the teacher's side of one step for images (B, 3, H, W), normalised for the student."""
        raw = self.teacher_features(pixel_values).outputs
        self.observe(raw)
        return TeacherStep(self.refine(raw))

    @torch.no_grad()
    def teacher_features(self, pixel_values: Tensor) -> CapturedFeatures:
        """F_l, raw tokens (B, P+N, D_T) after the distilled blocks and after those that follow refined ones.

        The images (B, 3, H, W) are normalised for the student; the calls of the following blocks are captured too.
        """
        with raw_features(self.singer_layers.values()):
            return self._teacher_capture(self.teacher_input(pixel_values))

    def refine(self, raw: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """F̂_l, refined in float32, from raw tokens (B, P+N, D_T) by block; gradients reach the adapters only."""
        own = self.refiners
        return {i: own[i].refine(raw[i].float()) if i in own else raw[i] for i in self.teacher_layers}

    def teacher_streams(self, pixel_values: Tensor) -> tuple[CapturedFeatures, dict[int, Tensor]]:
        """The raw features of images (B, 3, H, W), and the refined teacher's tokens (B, P+N, D_T) by block."""
        raw = self.teacher_features(pixel_values)
        return raw, self.refine(raw.outputs)

    def replay_next(self, block: int, refined: Tensor, features: CapturedFeatures) -> Tensor:
        """``block_{l+1}(F̂_l)``, with the further arguments of that block's recorded call.

        Args:
            block: l, 0-based index of a refined block that is not the last.
            refined: F̂_l, (B, P+N, D_T).
            features: The output of :meth:`teacher_features` for the same images.
        """
        return features.calls[block + 1].replay(self.teacher_view.blocks[block + 1], refined)

    def kd_loss(self, targets: Mapping[int, Tensor], student: Mapping[int, Tensor]) -> Tensor:
        """L_KD = mean over blocks of d(norm(F̂), P(F^S)), over the patches and the class tokens that both sides have.

        Args:
            targets: Teacher block -> target tokens (B, P+N, D_T).
            student: Student block -> tokens (B, C+N, D_S).
        """
        prefix, common = self.teacher_view.num_prefix_tokens, self.num_common_class_tokens
        pairs = [pair for pair in self.pairs if pair.teacher in targets]
        normalized = self.normalize_targets({pair.teacher: targets[pair.teacher] for pair in pairs})
        losses = [
            kd_loss(keep_tokens(normalized[p.teacher], common, prefix), self.project(p, student), self.kd_kind)
            for p in pairs
        ]
        return torch.stack(losses).mean()

    def normalize_targets(self, targets: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Tokens (B, P+N, D_T) by teacher block, normalised as the targets of L_KD are; same shapes."""
        return {i: self.target_norms[str(i)](tokens) for i, tokens in targets.items()}

    def observe(self, raw: Mapping[int, Tensor]) -> None:
        """In training, lets statistics of the teacher see raw tokens (B, P+N, D_T) by block."""
        for i in self.teacher_layers if self.training else ():
            self.target_norms[str(i)].observe(raw[i])
            if i in self.singer_layers:
                self.singer_layers[i].observe(raw[i])

    def project(self, pair: BlockPair, student: Mapping[int, Tensor]) -> Tensor:
        """P(F^S) of one pair, on the teacher's grid: (B, common class tokens + N, D_T).

        Args:
            pair: One of ``pairs``.
            student: Student block -> tokens (B, C+N, D_S).
        """
        common = self.num_common_class_tokens
        tokens = keep_tokens(student[pair.student], common, self.student_extractor.num_class_tokens)
        if pair.grid != self.teacher_input.grid:
            patches = resize_tokens(tokens[:, common:], pair.grid, self.teacher_input.grid)
            tokens = torch.cat([tokens[:, :common], patches], dim=1)
        return self.projectors[str(pair.teacher)](tokens)

    def _pair_blocks(
        self, teacher_layers: Sequence[int] | None, student_layers: Sequence[int] | None, size: tuple[int, int]
    ) -> tuple[BlockPair, ...]:
        number, extractor = self.teacher_view.num_blocks, self.student_extractor
        chosen = default_layers(number) if teacher_layers is None else teacher_layers
        teacher_layers = sorted(resolve_layers("teacher_layers", chosen, number))
        student_layers = pair_student_layers(teacher_layers, number, extractor.num_blocks, student_layers)
        pairs = zip(teacher_layers, student_layers, strict=True)
        return tuple(BlockPair(i, j, extractor.grid(j, size)) for i, j in pairs)

    def _refiners_by_block(self, given: Refiner | Mapping[int, Refiner] | None) -> dict[int, Refiner]:
        if given is None or isinstance(given, Mapping):
            refiners = dict(given or {})
        elif callable(getattr(given, "refine", None)):
            refiners = dict.fromkeys(self.teacher_layers, given)
        else:
            raise ValueError(f"`refiners` must have a method refine(hidden_states), got {type(given).__name__}")
        adapters = find_singer_layers(self.teacher)
        if adapters and refiners != adapters:
            raise ValueError(
                f"`teacher` must have no SiNGER adapters for {type(self).__name__}, it has some after blocks "
                f"{sorted(adapters)}; remove them or use SingerDistiller"
            )
        return refiners

    def _make_projectors(self) -> nn.ModuleDict:
        device, width = self.teacher_view.patch_embedding.weight.device, self.teacher_view.hidden_size
        own = self.student_extractor.widths
        return nn.ModuleDict({str(i): nn.Linear(own[j], width, device=device) for i, j, _ in self.pairs})

    def _make_target_norms(self) -> nn.ModuleDict:
        view = self.teacher_view
        sizes = (view.hidden_size, view.num_prefix_tokens, view.patch_embedding.weight.device)
        return nn.ModuleDict({str(i): make_target_norm(self.target_norm, *sizes) for i in self.teacher_layers})

    def _freeze_teacher(self) -> None:
        trained = {id(p) for layer in self.singer_layers.values() for p in layer.adapter_parameters()}
        for parameter in self.teacher.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)
        self.teacher.eval()
