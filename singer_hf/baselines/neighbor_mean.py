"""Replacement of outlier patch tokens by the mean of their neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.refiner_method import RefinerMethod, check_threshold, norms_and_thresholds, replace_patches
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


@dataclass(frozen=True)
class NeighborMean:
    """Replaces outlier patch tokens by the mean of the inlier tokens among their 8 neighbours on the grid.

    If all neighbours are outliers, the mean is taken over the inliers on the nearest ring that has some. An image
    without inliers is not changed.

    Args:
        num_prefix_tokens: Leading tokens that are never refined, P.
        grid: (rows, columns) of the patches.
        quantile: In (0, 1): an outlier is longer than this quantile of the patch norms.
        rule: The outlier rule, as in :class:`ClipNorm`. With neither of the two: ``OutlierRule()``.
        scope: Patches over which the threshold is computed, as in :class:`ClipNorm`.

    Raises:
        ValueError: If both are given, the quantile is out of range or the scope unknown.
    """

    num_prefix_tokens: int
    grid: tuple[int, int]
    quantile: float | None = None
    rule: OutlierRule | None = None
    scope: str = "image"

    def __post_init__(self) -> None:
        check_threshold("rule", self.quantile, self.rule, self.scope)

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> same shape and dtype; prefix tokens and inliers are unchanged bit for bit.

        Raises:
            ValueError: If N is not rows * columns.
        """
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        if patches.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"{patches.shape[1]} patch tokens do not fill a grid of {self.grid[0]} x {self.grid[1]}; give the "
                "`grid` of the images that are refined"
            )
        norms, thresholds = norms_and_thresholds(patches, self.quantile, self.rule, self.scope)
        outliers = norms > thresholds
        outliers &= ~outliers.all(dim=-1, keepdim=True)
        weights = _nearest(~outliers, self.grid)
        with torch.autocast(patches.device.type, enabled=False):  # it would take the product in half precision
            mean = weights @ patches.float() / weights.sum(dim=-1, keepdim=True)
        return replace_patches(prefix, patches, outliers, mean)


@dataclass(frozen=True)
class NeighborMeanMethod(RefinerMethod):
    """Distils features whose outliers are replaced by their neighbours' mean; settings of :class:`RefinerMethod`."""

    name = "neighbor"

    def make_refiner(self, view: ViTView, grid: tuple[int, int]) -> NeighborMean:
        """Returns the refiner for a teacher; see :meth:`RefinerMethod.make_refiner`."""
        return NeighborMean(view.num_prefix_tokens, grid, self.quantile, self.rule, self.scope)


def _nearest(inliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which inliers (B, N) are the nearest to each patch, on a square ring around it: 0 or 1, (B, N, N)."""
    place = torch.arange(grid[0] * grid[1], device=inliers.device)
    row, column = place // grid[1], place % grid[1]
    distance = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    usable = inliers.unsqueeze(1)
    nearest = distance.where(usable, max(grid)).amin(dim=-1, keepdim=True)
    return (usable & (distance == nearest)).float()
