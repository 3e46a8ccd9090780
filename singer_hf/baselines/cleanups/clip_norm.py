"""Clipping of the norms of outlier patch tokens."""

from dataclasses import dataclass

from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.norm_thresholds import NormThresholdMethod, check_threshold, norms_and_thresholds
from singer_hf.baselines.cleanups.refiner_method import replace_patches
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


@dataclass(frozen=True)
class ClipNorm:
    """Scales patch tokens whose norm exceeds a threshold down to it; the direction does not change.

    Args:
        num_prefix_tokens: Leading tokens that are never refined, P.
        quantile: In (0, 1): the threshold is this quantile of the norms. Outliers that make up a larger share
            than ``1 - quantile`` are not clipped: the quantile is then an outlier's norm.
        rule: The outlier rule that gives the threshold. With neither of the two: ``OutlierRule()``.
        scope: Patches over which the threshold is computed: ``"image"``, those of each image, or ``"batch"``, those of
            all images of the call. If outliers make up nearly half of an image's patches, the median and MAD of that
            image rise with them and the rule misses them; those of the batch do not.

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
        """Tokens (B, P+N, D) -> same shape and dtype; prefix and shorter patch tokens are unchanged bit for bit."""
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        norms, thresholds = norms_and_thresholds(patches, self.quantile, self.rule, self.scope)
        clipped = patches.float() * (thresholds / norms).unsqueeze(-1)
        return replace_patches(prefix, patches, norms > thresholds, clipped)


@dataclass(frozen=True)
class ClipNormMethod(NormThresholdMethod):
    """Distils features whose long patch tokens are clipped; settings of :class:`NormThresholdMethod`."""

    name = "clip_norm"
    title = "clipped norms"

    def make_refiner(self, view: ViTView, grid: tuple[int, int]) -> ClipNorm:
        """Returns the refiner for a teacher; see :meth:`RefinerMethod.make_refiner`."""
        return ClipNorm(view.num_prefix_tokens, self.quantile, self.rule, self.scope)
