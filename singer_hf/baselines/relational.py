"""Relational distillation: the student's patches are as similar to each other as the teacher's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from singer_hf.artifacts.gram import gram_matrix
from singer_hf.baselines.method import Method
from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.losses import check_weights
from singer_hf.distillation.trained_module import DistillerOutput, TeacherStep
from singer_hf.vit.tokens import resize_tokens


@dataclass(frozen=True)
class Relational(Method):
    """Distils the similarities of a teacher's patches, beside its features.

    The term is the Gram anchoring of DINOv3 (Siméoni et al., arXiv 2508.10104) with the teacher in the place of an
    earlier state of the student, over several pairs of blocks. It does not depend on the length of a token and needs
    no projector. The class token has no part in it, hence L_KD: with ``kd_loss: cosine`` neither term depends on the
    length of the teacher's tokens, with ``kd_weight: 0`` the similarities are all that is distilled.

    Args:
        relational_weight: Weight of the relational term, >= 0.

    Raises:
        ValueError: If a setting is out of its range.
    """

    name = "relational"
    title = "relational"
    card = CardMethod(
        "relational-distillation",
        "by matching the similarities between the patches of an image, and the features, of several blocks; high-norm "
        "tokens were not refined.",
        "relational",
    )

    relational_weight: float = 1.0

    def __post_init__(self) -> None:
        check_weights(relational_weight=self.relational_weight)

    def make_distiller(
        self, student: nn.Module, teacher: nn.Module, args: Any, **inputs: Any
    ) -> "RelationalDistiller":
        """Returns a :class:`RelationalDistiller`; see :meth:`Method.make_distiller`."""
        return RelationalDistiller(student, teacher, self, **self.objective(args), **inputs)

    def describe(self, distiller: "RelationalDistiller") -> str:
        """The method in a few words."""
        return "relational distillation of patch similarities and multi-layer feature distillation, no refinement"


@dataclass
class RelationalOutput(DistillerOutput):
    """Losses of one step.

    Attributes:
        relational_loss: Relational term, unweighted, mean over the distilled blocks, scalar.
    """

    relational_loss: Tensor | None = None


class RelationalDistiller(FeatureDistiller):
    """Distils patch similarities and features; see :class:`Relational`.

    Args:
        student: A vision transformer, or a model that returns feature maps (CNNs, Swin).
        teacher: A vision transformer without SiNGER adapters.
        settings: The settings of the method.
        **kwargs: Further arguments of :class:`FeatureDistiller`.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, settings: Relational | None = None, **kwargs: Any
    ) -> None:
        super().__init__(student, teacher, **kwargs)
        self.settings = settings or Relational()

    @property
    def loss_weights(self) -> dict[str, float]:
        """Name of each component of the loss in the log -> its weight in the sum."""
        return {**super().loss_weights, "relational_loss": self.settings.relational_weight}

    def losses(self, student: Mapping[int, Tensor], teacher: TeacherStep) -> RelationalOutput:
        """Computes both terms; see :meth:`FeatureDistiller.losses`.

        Args:
            student: Student block -> tokens (B, C+N, D_S).
            teacher: The teacher's side of the step, for the same images.
        """
        kd, relational = self.kd_loss(teacher.targets, student), self.relational_loss(teacher.targets, student)
        loss = self.kd_weight * kd + self.settings.relational_weight * relational
        return RelationalOutput(loss=loss, kd_loss=kd, relational_loss=relational)

    def relational_loss(self, targets: Mapping[int, Tensor], student: Mapping[int, Tensor]) -> Tensor:
        """Relational term, scalar, mean over the pairs of blocks; a student's other grid is resized to the teacher's.

        Args:
            targets: Teacher block -> target tokens (B, P+N, D_T).
            student: Student block -> tokens (B, C+N', D_S).
        """
        prefix, own = self.teacher_view.num_prefix_tokens, self.student_extractor.num_class_tokens
        losses = []
        for pair in self.pairs:
            patches = resize_tokens(student[pair.student][:, own:], pair.grid, self.teacher_input.grid)
            losses.append(relational_loss(patches, targets[pair.teacher][:, prefix:]))
        return torch.stack(losses).mean()


def relational_loss(student_patches: Tensor, teacher_patches: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities of all pairs of patches of an image, scalar, float32 inside.

    Args:
        student_patches: Patch tokens (B, N, D_S).
        teacher_patches: Patch tokens (B, N, D_T), of any other width.

    Raises:
        ValueError: If numbers of images or patches differ.
    """
    if student_patches.shape[:2] != teacher_patches.shape[:2]:
        raise ValueError(
            f"patches of the student {tuple(student_patches.shape)} and of the teacher {tuple(teacher_patches.shape)} "
            "must be equally many"
        )
    return F.mse_loss(gram_matrix(student_patches), gram_matrix(teacher_patches))
