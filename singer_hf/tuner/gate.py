"""The gate of an adapter: which patch tokens it refines, and how far."""

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule, token_norms
from singer_hf.vit.running_statistics import mean_over_processes, settling_weight

GATES = ("none", "outlier")
# The gate opens at the threshold of the outlier rule and is fully open at this many times its excess over the median.
FULLY_OPEN = 1.5


class OutlierGate(nn.Module):
    """Limits a refinement to high-norm patch tokens: 0 for ordinary ones, 1 for outliers, linear in between.

    The gate of a token is ``clamp((‖F‖ - t) / (t' - t), 0, 1)``. With the location m and the deviation s of the inlier
    norms at this block, t = m + 10 s is the threshold of :class:`singer_hf.artifacts.outliers.OutlierRule` and
    t' = m + 15 s. Both statistics are estimated by :meth:`observe` over the first batches of a training and fixed
    afterwards. They are saved with the adapter, so that an image is refined alike alone and in any batch. Until the
    first batch the gate is closed.

    Attributes:
        location: Median of the inlier norms, scalar buffer.
        deviation: Median absolute deviation of the inlier norms, at least a tenth of the location, scalar buffer.
        num_batches: Batches that both were estimated from, scalar buffer.
    """

    location: Tensor
    deviation: Tensor
    num_batches: Tensor

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.rule = OutlierRule()
        for name in ("location", "deviation"):
            self.register_buffer(name, torch.zeros((), device=device))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.long, device=device))

    @property
    def threshold(self) -> Tensor:
        """t, the norm from which tokens are refined, scalar."""
        return self.location + self.rule.mad_factor * self.deviation

    def forward(self, patches: Tensor) -> Tensor:
        """Share of the refinement that each patch token (B, N, D) gets, (B, N, 1) in [0, 1], float32, no gradient."""
        norms = token_norms(patches.detach()).unsqueeze(-1)
        width = (FULLY_OPEN - 1) * (self.threshold - self.location)
        share = ((norms - self.threshold) / width.clamp(min=1e-12)).clamp(0, 1)
        return share * (self.num_batches > 0)

    @torch.no_grad()
    def observe(self, patches: Tensor) -> None:
        """Adds the raw patch tokens (B, N, D) of one training batch to both statistics, over all processes."""
        norms = token_norms(patches).flatten()
        inliers = norms.where(norms <= self.rule.thresholds(norms)[0], torch.nan)
        location = inliers.nanmedian()
        deviation = torch.maximum((inliers - location).abs().nanmedian(), self.rule.mad_floor * location)
        measured = mean_over_processes(torch.stack([location, deviation]))
        weight = settling_weight(self.num_batches)
        self.location.lerp_(measured[0].to(self.location), weight)
        self.deviation.lerp_(measured[1].to(self.deviation), weight)
        self.num_batches += weight > 0
