"""Clipping of the norms of outlier patch tokens."""

from dataclasses import dataclass

from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.refiner_method import RefinerMethod, check_threshold, norms_and_thresholds, replace_patches
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


@dataclass(frozen=True)
class ClipNorm:
    """Scales patch tokens that are longer than a threshold down to it; their direction is kept.

    Args:
        num_prefix_tokens: Leading tokens that are never refined, P.
        quantile: In (0, 1): the threshold is this quantile of the patch norms. Where the share of outliers is larger
            than ``1 - quantile`` they are kept, for the quantile is then one of them.
        rule: The threshold is this rule's. Neither of the two: ``OutlierRule()``.
        scope: Whose patches the threshold is taken over: ``"image"``, each image's own, or ``"batch"``, those of all
            images of the call. Outliers gather in some images; where they come close to half of the patches, the
            image's own median and MAD rise with them and even the rule passes them over, which the batch's does not.

    Raises:
        ValueError: If both are given, the quantile is out of range or the scope unknown.
    """

    num_prefix_tokens: int
    quantile: float | None = None
    rule: OutlierRule | None = None
    scope: str = "image"

    def __post_init__(self) -> None:
        check_threshold("rule", self.quantile, self.rule, self.scope)

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> same shape and dtype; prefix and short patch tokens bit for bit as they came."""
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        norms, thresholds = norms_and_thresholds(patches, self.quantile, self.rule, self.scope)
        clipped = patches.float() * (thresholds / norms).unsqueeze(-1)
        return replace_patches(prefix, patches, norms > thresholds, clipped)


@dataclass(frozen=True)
class ClipNormMethod(RefinerMethod):
    """Distils features whose long patch tokens are clipped to a threshold; settings of :class:`RefinerMethod`."""

    name = "clip_norm"

    def make_refiner(self, view: ViTView, grid: tuple[int, int]) -> ClipNorm:
        """Returns the refiner for a teacher; see :meth:`RefinerMethod.make_refiner`."""
        return ClipNorm(view.num_prefix_tokens, self.quantile, self.rule, self.scope)
