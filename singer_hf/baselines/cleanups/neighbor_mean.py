"""Replacement of outlier patch tokens by the mean of their neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.norm_thresholds import NormThresholdMethod, check_threshold, norms_and_thresholds
from singer_hf.baselines.cleanups.refiner_method import replace_patches
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
        norms, thresholds = norms_and_thresholds(patches, self.quantile, self.rule, self.scope)
        return replace_by_neighbors(prefix, patches, norms > thresholds, self.grid)


@dataclass(frozen=True)
class NeighborMeanMethod(NormThresholdMethod):
    """Distils features with neighbours' means for outliers; settings of :class:`NormThresholdMethod`."""

    name = "neighbor"
    title = "neighbours' mean"

    def make_refiner(self, view: ViTView, grid: tuple[int, int]) -> NeighborMean:
        """Returns the refiner for a teacher; see :meth:`RefinerMethod.make_refiner`."""
        return NeighborMean(view.num_prefix_tokens, grid, self.quantile, self.rule, self.scope)


def replace_by_neighbors(prefix: Tensor, patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, P+N, D) in which outliers are replaced as by :class:`NeighborMean`.

    Args:
        prefix: Prefix tokens (B, P, D).
        patches: Patch tokens (B, N, D).
        outliers: True at the patches to replace, (B, N); an image that has no others is not changed.
        grid: (rows, columns) of the patches.

    Raises:
        ValueError: If N is not rows * columns.
    """
    if patches.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"{patches.shape[1]} patch tokens do not fill a grid of {grid[0]} x {grid[1]}; give the `grid` of the "
            "images that are refined"
        )
    outliers = outliers & ~outliers.all(dim=-1, keepdim=True)
    distance = _distance(grid, patches.device)
    with torch.autocast(patches.device.type, enabled=False):  # it would take the product in half precision
        # One image at a time: weights of a whole batch (B, N, N) can take a gigabyte.
        means = [_nearest_mean(*image, distance) for image in zip(patches.float(), ~outliers, strict=True)]
    return replace_patches(prefix, patches, outliers, torch.stack(means))


def _distance(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Distance of each patch to each other on square rings, (N, N)."""
    place = torch.arange(grid[0] * grid[1], device=device)
    row, column = place // grid[1], place % grid[1]
    return torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())


def _nearest_mean(patches: Tensor, inliers: Tensor, distance: Tensor) -> Tensor:
    """Mean of the inliers (N,) on the nearest ring around each patch (N, D) that has some; same shape."""
    nearest = distance.where(inliers, len(distance)).amin(dim=-1, keepdim=True)
    weights = (inliers & (distance == nearest)).float()
    return weights @ patches / weights.sum(dim=-1, keepdim=True)
