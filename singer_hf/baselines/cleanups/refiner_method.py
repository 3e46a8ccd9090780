"""Clean-up methods without training that refine the tokens after a block, by a threshold on their norms.

A refiner takes the place of an adapter: it has the ``refine`` of :class:`singer_hf.tuner.layer.SingerLayer`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.method import Method
from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.feature_distiller import FeatureDistiller, Refiner
from singer_hf.distillation.teacher_input import teacher_image_size
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

SCOPES = ("image", "batch")


@dataclass(frozen=True)
class RefinerMethod(Method):
    """Distils features that an untrained refiner cleans of outliers.

    Args:
        quantile: In (0, 1): an outlier is longer than this quantile of the patch norms.
        mad_factor: k of an :class:`OutlierRule`, > 0. With neither of the two: ``OutlierRule()``.
        scope: Patches over which the threshold is taken: those of each ``"image"`` or of the whole ``"batch"``.

    Raises:
        ValueError: If both thresholds are given, one is out of range, or the scope is unknown.
    """

    quantile: float | None = None
    mad_factor: float | None = None
    scope: str = "image"

    def __post_init__(self) -> None:
        check_threshold("mad_factor", self.quantile, self.mad_factor, self.scope)
        if self.mad_factor is not None:
            OutlierRule(mad_factor=self.mad_factor)

    @property
    def rule(self) -> OutlierRule | None:
        """The outlier rule, where ``mad_factor`` is given."""
        return None if self.mad_factor is None else OutlierRule(mad_factor=self.mad_factor)

    @property
    def card(self) -> CardMethod:
        """The method in the model card of its student."""
        return refined_features_card(f"the method `{self.name}`")

    def make_refiner(self, view: ViTView, grid: tuple[int, int]) -> Refiner:
        """Returns the refiner for a teacher.

        Args:
            view: View of the teacher.
            grid: (rows, columns) of the teacher's patches.
        """
        raise NotImplementedError

    def make_distiller(self, student: nn.Module, teacher: nn.Module, args: Any, **inputs: Any) -> FeatureDistiller:
        """Returns the distiller with this refiner after every distilled block; see :meth:`Method.make_distiller`."""
        objective, view = self.objective(args), view_vit(teacher)
        size = teacher_image_size(student, view, inputs.get("image_size"), objective["student_layers"])
        refiner = self.make_refiner(view, view.grid(*size))
        return FeatureDistiller(student, teacher, refiners=refiner, **objective, **inputs)

    def describe(self, distiller: FeatureDistiller) -> str:
        """The method in a few words."""
        refiner = next(iter(distiller.refiners.values()))
        return f"multi-layer feature distillation, targets refined by {refiner}"


def refined_features_card(method: str) -> CardMethod:
    """The card text of a clean-up method.

    Args:
        method: The clean-up method in words.
    """
    return CardMethod(
        "feature-distillation",
        "by matching features of several blocks: the student learned the teacher's features, whose high-norm tokens "
        f"were refined by {method}.",
    )


def check_threshold(other: str, quantile: float | None, value: object, scope: str) -> None:
    """Checks the threshold of a refiner.

    Args:
        other: Name of the alternative to ``quantile``.
        quantile: Quantile of the norms, in (0, 1).
        value: The alternative.
        scope: One of ``SCOPES``.

    Raises:
        ValueError: If both are given, the quantile is out of range, or the scope is unknown.
    """
    if quantile is not None and value is not None:
        raise ValueError(f"`quantile` and `{other}` must not both be given, got {quantile!r} and {value!r}; drop one")
    if quantile is not None and not 0 < quantile < 1:
        raise ValueError(f"`quantile` must lie in (0, 1), got {quantile!r}; `{other}` needs no share of outliers")
    if scope not in SCOPES:
        raise ValueError(f"`scope` must be one of {', '.join(map(repr, SCOPES))}, got {scope!r}")


def norms_and_thresholds(
    patches: Tensor, quantile: float | None, rule: OutlierRule | None, scope: str
) -> tuple[Tensor, Tensor]:
    """Norms (B, N) of patch tokens and the threshold of each image (B, 1) or of the batch (1, 1), float32.

    Args:
        patches: Patch tokens (B, N, D).
        quantile: Quantile of the norms that is the threshold, or None.
        rule: The rule otherwise; None: ``OutlierRule()``.
        scope: One of ``SCOPES``.
    """
    norms = patches.float().norm(dim=-1)
    pooled = norms if scope == "image" else norms.flatten().unsqueeze(0)
    if quantile is not None:
        return norms, torch.quantile(pooled, quantile, dim=-1, keepdim=True)
    return norms, (rule or OutlierRule()).thresholds(pooled)[0]


def replace_patches(prefix: Tensor, patches: Tensor, outliers: Tensor, replacement: Tensor) -> Tensor:
    """Tokens (B, P+N, D) in which the outliers among the patches are replaced.

    Args:
        prefix: Prefix tokens (B, P, D).
        patches: Patch tokens (B, N, D).
        outliers: True at the patches to replace, (B, N).
        replacement: Patch tokens (B, N, D).
    """
    patches = torch.where(outliers.unsqueeze(-1), replacement.to(patches.dtype), patches)
    return torch.cat([prefix, patches], dim=1)
