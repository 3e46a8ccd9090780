"""The gate of an adapter: which patch tokens it refines, and how far."""

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.artifacts.gram import full_precision
from singer_hf.artifacts.outliers import MIN_SHARE, MIN_STRENGTH, OutlierRule, token_norms
from singer_hf.vit.running_statistics import SettlingStatistics, mean_over_processes, settling_weight

GATES = ("none", "outlier")
# Deviations above the location at which the gate begins to open and is fully open. For norms the first is the
# threshold of the outlier rule.
_NORMS, _SCORES = (10.0, 15.0), (7.0, 10.0)

# Smallest deviation of the scores in units of the location, for blocks whose inliers do not vary along the direction.
_SMALLEST_SCORE = 0.01


class OutlierGate(SettlingStatistics):
    """Limits a refinement to artifacts: 0 for ordinary patch tokens, 1 for artifacts, linear in between.

    A token x opens the gate by its norm, or by its score ``(x - mean) . direction`` of either sign: artifacts of
    normal length are found by the direction that the long ones share. Both are compared with the location and the
    deviation (median and MAD) of the inliers of this block; inliers are the patches that the outlier rule does not
    flag in a batch. The gate stays closed as long as the outliers are too few or too weak to be artifacts, by the
    verdict of an audit.

    All statistics are estimated by :meth:`observe` over the first batches of a training and fixed afterwards. They
    are saved with the adapter, so that an image is refined alike alone and in any batch.

    Args:
        hidden_size: Width D of the tokens.
        device: Device of the statistics.

    Attributes:
        location: Median of the inlier norms, scalar buffer.
        deviation: MAD of the inlier norms, at least a tenth of the location, scalar buffer.
        share: Share of outliers among the patches, scalar buffer.
        excess: Mean over all patches of the outliers' norms over the location, 0 elsewhere, scalar buffer.
        mean: Mean inlier, (D,) buffer.
        direction: Leading direction of outliers minus ``mean``, of unit length, (D,) buffer; 0 without outliers.
        score_location: Median of the inlier scores, scalar buffer.
        score_deviation: MAD of the inlier scores, scalar buffer.
        num_batches: Batches that all were estimated from, scalar buffer.
    """

    def __init__(self, hidden_size: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.rule = OutlierRule(mad_factor=_NORMS[0])
        for name in ("location", "deviation", "share", "excess", "score_location", "score_deviation"):
            self.register_buffer(name, torch.zeros((), device=device))
        for name in ("mean", "direction"):
            self.register_buffer(name, torch.zeros(hidden_size, device=device))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.long, device=device))

    @property
    def is_open(self) -> Tensor:
        """Whether this block has artifacts, a scalar tensor of bool."""
        strength = self.excess / self.share.clamp(min=1e-12)
        return (self.share >= MIN_SHARE) & (strength >= MIN_STRENGTH)

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """Share of the refinement that each patch token (B, N, D) gets, (B, N, 1) in [0, 1], float32, no gradient."""
        by_norm = _ramp(token_norms(patches) - self.location, self.deviation, _NORMS)
        floor = _SMALLEST_SCORE * self.location
        distance = (self._scores(patches) - self.score_location).abs()
        by_score = _ramp(distance, self.score_deviation.maximum(floor), _SCORES)
        return (by_norm.maximum(by_score) * self.is_open).unsqueeze(-1)

    @torch.no_grad()
    def observe(self, patches: Tensor) -> None:
        """Adds the raw patch tokens (B, N, D) of one training batch to the statistics, over all processes."""
        if self.is_settled:
            return
        patches, weight = patches.float().flatten(0, 1), settling_weight(self.num_batches)
        norms = token_norms(patches)
        outliers = norms > self.rule.thresholds(norms)[0]
        inlier_norms = norms.masked_fill(outliers, torch.nan)
        location = inlier_norms.nanmedian()
        deviation = _mad(inlier_norms, location).maximum(self.rule.mad_floor * location)
        excess = (norms / location.clamp(min=1e-12) * outliers).mean()
        self._update(weight, location=location, deviation=deviation, share=outliers.float().mean(), excess=excess)
        self._update(weight, mean=(patches * ~outliers.unsqueeze(-1)).sum(dim=0) / (~outliers).sum().clamp(min=1))
        self._turn(F.normalize(patches - self.mean, dim=-1) * outliers.unsqueeze(-1), weight)
        scores = self._scores(patches).masked_fill(outliers, torch.nan)
        score_location = scores.nanmedian()
        # Batches before the first one with outliers have no scores.
        scored = torch.where(self.score_deviation > 0, weight, weight.sign())
        self._update(scored, score_location=score_location, score_deviation=_mad(scores, score_location))
        self.num_batches += weight > 0

    def _scores(self, patches: Tensor) -> Tensor:
        with full_precision(patches.device.type):
            return (patches.float() - self.mean) @ self.direction

    def _turn(self, outliers: Tensor, weight: Tensor) -> None:
        """A step of a power iteration over batches; rows of ``outliers`` (M, D) are of unit length, or 0."""
        start = torch.where(self.direction.any(), self.direction, mean_over_processes(outliers.sum(dim=0)))
        with full_precision(outliers.device.type):
            leading = mean_over_processes(outliers.T @ (outliers @ start))
        moved = F.normalize(torch.lerp(self.direction, F.normalize(leading, dim=0), weight), dim=0)
        self.direction.copy_(torch.where(leading.any() & (weight > 0), moved, self.direction))

    def _update(self, weight: Tensor, **values: Tensor) -> None:
        for name, value in values.items():
            buffer = getattr(self, name)
            buffer.lerp_(mean_over_processes(value).to(buffer), weight)


def _ramp(excess: Tensor, deviation: Tensor, factors: tuple[float, float]) -> Tensor:
    """0 up to ``factors[0]`` deviations, 1 from ``factors[1]`` deviations on, linear in between."""
    return ((excess / deviation.clamp(min=1e-12) - factors[0]) / (factors[1] - factors[0])).clamp(0, 1)


def _mad(values: Tensor, location: Tensor) -> Tensor:
    """Median absolute deviation of the values (M,) that are not NaN."""
    return (values - location).abs().nanmedian()
