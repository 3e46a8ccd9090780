"""SiNGER: feature distillation from refined teacher features, with the adapter trained along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.trained_module import DistillerOutput, TeacherStep
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.vit.features import CapturedFeatures


@dataclass
class SingerOutput(DistillerOutput):
    """Losses of one SiNGER step. Components are unweighted and averaged over the distilled blocks.

    Attributes:
        outlier_loss: L_outlier, scalar; 0 for a teacher without adapters.
        info_loss: L_info, scalar; 0 for a teacher without adapters, and with ``info_weight=0``, where it is not
            computed.
    """

    outlier_loss: Tensor | None = None
    info_loss: Tensor | None = None


class SingerDistiller(FeatureDistiller):
    """Distils refined teacher features into a student (SiNGER, arXiv 2509.20986, section 3).

    The teacher's own stream is not changed: block l + 1 of the main pass gets the raw features, and runs once more on
    the refined ones for L_info.

    Args:
        student: A vision transformer, or a model that returns feature maps (CNNs, Swin).
        teacher: A vision transformer with SiNGER adapters, as from ``get_peft_model``, distilled at their blocks. A
            bare one is distilled without refinement (FitNet).
        teacher_layers: Distilled blocks of a bare teacher, 0-based, negatives allowed.
        outlier_weight: λ_outlier, >= 0.
        info_weight: λ_info, >= 0.
        outlier_quantile: γ in (0, 1): the share of an image's patches whose norm is not penalised.
        outlier_loss: What L_outlier lowers: ``"absolute"``: the largest norms, in the teacher's own unit (paper).
            ``"relative"``: the same in units of the median norm of the image's raw patch tokens. ``"neighbors"``: the
            distance of artifacts to the ordinary patches around them, in this unit.
        info_loss: ``"gram"`` (paper) or ``"reference"`` (the released code's variant).
        info_share: Share of the images that L_info is taken of in a training step, in (0, 1], at least one image. They
            are drawn anew in every step, so its expectation is L_info of all images; in evaluation all are taken.
        detach_refined: Whether L_KD has no gradient to the adapter.
        **kwargs: ``student_layers``, ``kd_weight``, ``kd_loss``, ``target_norm``, ``image_size`` and both
            normalisations of :class:`FeatureDistiller`.

    Raises:
        ValueError: If an argument is out of range, the student is no vision model, it has fewer blocks than are
            distilled, or the patch grids cannot be matched.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        teacher_layers: Sequence[int] | None = None,
        outlier_weight: float = OBJECTIVE["outlier_weight"],
        info_weight: float = OBJECTIVE["info_weight"],
        outlier_quantile: float = OBJECTIVE["outlier_quantile"],
        outlier_loss: str = OBJECTIVE["outlier_loss"],
        info_loss: str = OBJECTIVE["info_loss"],
        info_share: float = OBJECTIVE["info_share"],
        detach_refined: bool = OBJECTIVE["detach_refined"],
        **kwargs: Any,
    ) -> None:
        objective = AdapterObjective(
            outlier_weight, info_weight, outlier_quantile, outlier_loss, info_loss, info_share
        )
        adapters = find_singer_layers(teacher)
        if adapters and teacher_layers is not None and sorted(teacher_layers) != sorted(adapters):
            raise ValueError(
                "`teacher_layers` must be left out for a teacher with adapters, which is distilled at their blocks "
                f"{sorted(adapters)}, got {list(teacher_layers)}"
            )
        layers = sorted(adapters) if adapters else teacher_layers
        super().__init__(student, teacher, refiners=adapters, teacher_layers=layers, **kwargs)
        self.objective, self.detach_refined = objective, detach_refined
        # While True, L_KD has weight 0; the student stays part of the graph, as several processes need it.
        self.in_adapter_warmup = False
        self._batched = self.find_batched_values() if adapters and objective.info_share < 1 else {}

    @property
    def loss_weights(self) -> dict[str, float]:
        """Name of each component of the loss in the log -> its weight in the sum."""
        return {**super().loss_weights, **self.objective.weights}

    def losses(self, student: Mapping[int, Tensor], teacher: TeacherStep) -> SingerOutput:
        """Computes ``λ_KD L_KD + λ_outlier L_outlier + λ_info L_info``; see :meth:`FeatureDistiller.losses`.

        Args:
            student: Student block -> tokens (B, C+N, D_S).
            teacher: The teacher's side of the step, for the same images.
        """
        kd = self.kd_loss(teacher.targets, student)
        loss = (0.0 if self.in_adapter_warmup else self.kd_weight) * kd
        if teacher.loss is not None:
            loss = loss + teacher.loss
        zeros = {name: torch.zeros_like(kd) for name in ("outlier_loss", "info_loss")}
        return SingerOutput(loss=loss, kd_loss=kd, **zeros | teacher.components)

    def teacher_step(self, pixel_values: Tensor) -> TeacherStep:
        """Computes targets and the adapter's terms for images (B, 3, H, W), normalised for the student."""
        raw = self.teacher_features(pixel_values)
        self.observe(raw.outputs)
        refined = self.refine(raw.outputs)
        targets = {i: tokens.detach() for i, tokens in refined.items()} if self.detach_refined else refined
        if not self.refiners:
            return TeacherStep(targets)
        outlier = self.outlier_loss(refined, raw.outputs)
        weights = self.objective
        info = self.info_loss(*self._share(raw, refined)) if weights.info_weight else torch.zeros_like(outlier)
        loss = weights.outlier_weight * outlier + weights.info_weight * info
        return TeacherStep(targets, loss, {"outlier_loss": outlier, "info_loss": info})

    def outlier_loss(self, refined: Mapping[int, Tensor], raw: Mapping[int, Tensor]) -> Tensor:
        """L_outlier, mean over the blocks.

        Args:
            refined: F̂_l, (B, P+N, D_T), by block.
            raw: F_l, likewise.
        """
        return torch.stack([self._outlier_loss_of_block(i, refined[i], raw[i]) for i in refined]).mean()

    def _outlier_loss_of_block(self, block: int, refined: Tensor, raw: Tensor) -> Tensor:
        refined, raw = (tokens[:, self.teacher_view.num_prefix_tokens :] for tokens in (refined, raw))
        return self.objective.outlier_term(self.singer_layers[block], refined, raw, self.teacher_input.grid)

    def info_loss(self, raw: CapturedFeatures, refined: Mapping[int, Tensor]) -> Tensor:
        """L_info, mean over the blocks.

        Args:
            raw: F_l and the calls of the next blocks, from :meth:`teacher_features`.
            refined: F̂_l, (B, P+N, D_T), by block.
        """
        return torch.stack([self._info_of_block(i, raw, refined) for i in self.teacher_layers]).mean()

    def find_batched_values(self) -> dict[int, list[bool]]:
        """Which values of the calls of the following blocks have a row for each image, by block."""
        with raw_features(self.singer_layers.values()):
            return self._teacher_capture.batched_values(self.teacher_input.teacher_image_size)

    def _share(self, raw: CapturedFeatures, refined: dict[int, Tensor]) -> tuple[CapturedFeatures, dict[int, Tensor]]:
        """Both for the images of L_info in this step; in evaluation for all."""
        tokens = refined[self.teacher_layers[-1]]
        images = self.objective.draw_images(len(tokens), tokens.device) if self.training else None
        if images is None:
            return raw, refined
        return raw.select(images, self._batched), {i: tokens[images] for i, tokens in refined.items()}

    def _info_of_block(self, block: int, raw: CapturedFeatures, refined: Mapping[int, Tensor]) -> Tensor:
        """Compares outputs of the next block; after the last block the features themselves."""
        prefix, layer = self.teacher_view.num_prefix_tokens, self.singer_layers[block]
        if block + 1 < self.teacher_view.num_blocks:
            output = self.replay_next(block, refined[block], raw)
            return self.objective.info_term(layer, output, raw.outputs[block + 1], raw.outputs[block], prefix)
        expected = raw.outputs[block]
        if self.objective.info_loss == "reference" and len(self.teacher_layers) > 1:
            expected = refined[self.teacher_layers[-2]]
        gram = replace(self.objective, info_loss="gram")
        return gram.info_term(layer, refined[block], expected, raw.outputs[block], prefix)
