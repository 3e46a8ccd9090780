"""Distillation from a cleaned teacher: its adapters are active in the main pass, frozen or trained along."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from singer_hf.distillation.adapter.cleaner import TeacherCleaner
from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.distillation.distiller import SingerOutput
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.trained_module import DistillerOutput, TeacherStep
from singer_hf.tuner.layer import SingerLayer, find_singer_layers, flowing_tokens
from singer_hf.vit.features import CapturedFeatures


class InlineDistiller(FeatureDistiller):
    """Distils the features of a teacher whose SiNGER adapters are active, as :func:`singer_hf.cleaning.clean` left it.

    A block with an adapter is followed by blocks that read its refined tokens, in contrast to
    :class:`singer_hf.distillation.distiller.SingerDistiller`. The targets are the tokens as they flow on, so any block
    may be distilled. L_KD has no gradient to the adapters: they are frozen, or trained by L_outlier and L_info alone.

    Args:
        student: A vision transformer, or a model that returns feature maps (CNNs, Swin).
        teacher: A vision transformer with SiNGER adapters.
        objective: Weights and forms of L_outlier and L_info, by which the adapters are trained along, see
            :class:`singer_hf.distillation.adapter.cleaner.TeacherCleaner`. None: they are frozen.
        **kwargs: ``teacher_layers``, ``student_layers``, ``kd_weight``, ``kd_loss``, ``target_norm``, ``image_size``
            and both normalisations of :class:`FeatureDistiller`.

    Attributes:
        refiners: The adapters by their block, distilled or not.
        objective: See above.
        initial_adapter: Digest of the adapters at the start.

    Raises:
        ValueError: If the teacher has no SiNGER adapter or several, no distilled block reads what it refines,
            L_outlier has no weight, or for a reason of :class:`FeatureDistiller`.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, objective: AdapterObjective | None = None, **kwargs: Any
    ) -> None:
        adapters = dict(sorted(find_singer_layers(teacher).items()))
        if not adapters:
            raise ValueError(
                "`teacher` must have SiNGER adapters, it has none; load the adapter onto it with "
                "`Cleaned(adapter_name_or_path).prepare(teacher)`"
            )
        _check_names(adapters)
        super().__init__(student, teacher, refiners=adapters, **kwargs)
        self._check(adapters, objective)
        self.objective, self.initial_adapter = objective, adapter_digest(adapters)
        # In a tuple, as the cleaner has no parts of its own: the adapters belong to the teacher.
        self._cleaner = () if objective is None else (TeacherCleaner(teacher, objective),)
        if objective is None:
            teacher.requires_grad_(False)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Name of each component of the loss in the log -> its weight in the sum."""
        return {**super().loss_weights, **({} if self.objective is None else self.objective.weights)}

    def losses(self, student: Mapping[int, Tensor], teacher: TeacherStep) -> DistillerOutput:
        """Computes the losses of one step; see :meth:`FeatureDistiller.losses`.

        Args:
            student: Student block -> tokens (B, C+N, D_S).
            teacher: The teacher's side of the step, for the same images.

        Returns:
            ``loss`` and ``kd_loss``; of adapters that are trained along a
            :class:`singer_hf.distillation.distiller.SingerOutput`.
        """
        output = super().losses(student, teacher)
        if teacher.loss is None:
            return output
        return SingerOutput(loss=output.loss + teacher.loss, kd_loss=output.kd_loss, **teacher.components)

    def teacher_step(self, pixel_values: Tensor) -> TeacherStep:
        """Computes targets, and the adapter's terms where it is trained, for images (B, 3, H, W) of the student."""
        # First, so that the gates have seen the images before the targets are made.
        terms = [cleaner.losses(self.teacher_input(pixel_values), self.training) for cleaner in self._cleaner]
        features = self.flowing_features(pixel_values)
        self.observe(features)
        targets = {i: features[i] for i in self.teacher_layers}
        if not terms:
            return TeacherStep(targets)
        (own,) = terms
        return TeacherStep(targets, own.loss, {"outlier_loss": own.outlier_loss, "info_loss": own.info_loss})

    @torch.no_grad()
    def flowing_features(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """Tokens (B, P+N, D_T) as the next block reads them, after the distilled blocks and those with adapters.

        Args:
            pixel_values: Images (B, 3, H, W), normalised for the student.
        """
        outputs = self._teacher_capture(self.teacher_input(pixel_values)).outputs
        needed = sorted({*self.teacher_layers, *self.refiners})
        return flowing_tokens(self.singer_layers, {i: outputs[i] for i in needed})

    def teacher_streams(self, pixel_values: Tensor) -> tuple[CapturedFeatures, dict[int, Tensor]]:
        """The bare teacher's features of images (B, 3, H, W), and tokens (B, P+N, D_T) by block as they flow on."""
        return self.teacher_features(pixel_values), self.flowing_features(pixel_values)

    def observe(self, raw: Mapping[int, Tensor]) -> None:
        """In training, lets statistics of the targets see tokens (B, P+N, D_T) by block; gates see the cleaner's."""
        if self.training:
            for i in self.teacher_layers:
                self.target_norms[str(i)].observe(raw[i])

    @contextmanager
    def attached(self) -> Iterator[None]:
        """A context in which the hooks stay on teacher and student between steps, as compilation needs."""
        with super().attached(), self._cleaner[0].attached() if self._cleaner else nullcontext():
            yield

    def _check(self, adapters: Mapping[int, SingerLayer], objective: AdapterObjective | None) -> None:
        if min(adapters) > max(self.teacher_layers):
            raise ValueError(
                f"`teacher_layers` must reach the first block with an adapter, {min(adapters)}, or nothing that is "
                f"distilled is refined, got {self.teacher_layers}"
            )
        if objective is not None and not objective.outlier_weight:
            raise ValueError(
                f"`outlier_weight` must be greater than 0 to train the adapter, got {objective.outlier_weight!r}; "
                "leave `train_adapter` out to keep it as it is"
            )


def _check_names(layers: Mapping[int, SingerLayer]) -> None:
    """One adapter is saved with the student, so that one must be all that refines the teacher."""
    names = {name for layer in layers.values() for name in layer.singer_down}
    active = {name for layer in layers.values() if not layer.disable_adapters for name in layer.active_adapters}
    if len(names) > 1 or active != names:
        raise ValueError(
            f"`teacher` must have one adapter, and it must be active, got {sorted(names)} of which {sorted(active)} "
            "are active; delete the others with `teacher.delete_adapter`, or call `teacher.set_adapter`"
        )


def adapter_digest(layers: Mapping[int, SingerLayer]) -> str:
    """A digest of the weights and statistics of adapters, by which two adapters are told apart.

    Args:
        layers: Block index -> layer with adapters.
    """
    digest = hashlib.sha256()
    for index, layer in sorted(layers.items()):
        own = {name: value for name, value in layer.state_dict().items() if name.startswith("singer_")}
        for name, value in sorted(own.items()):
            digest.update(f"{index}.{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
