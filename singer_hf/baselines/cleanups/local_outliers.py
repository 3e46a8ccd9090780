"""Replacement of patch tokens that are far from all others, whatever their norm, by the mean of their neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from singer_hf.artifacts.local_outlier_factor import local_outlier_factor
from singer_hf.baselines.cleanups.neighbor_mean import replace_by_neighbors
from singer_hf.baselines.cleanups.refiner_method import RefinerMethod
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


@dataclass(frozen=True)
class LocalOutlierMean:
    """Replaces the patch tokens with the largest local outlier factors by the mean of their neighbours on the grid.

    The neighbours are those of :class:`singer_hf.baselines.cleanups.neighbor_mean.NeighborMean`. The same number of
    tokens is replaced in every image, outliers or not.

    Args:
        num_prefix_tokens: Leading tokens that are never refined, P.
        grid: (rows, columns) of the patches.
        num_neighbors: k of :func:`singer_hf.artifacts.local_outlier_factor.local_outlier_factor`, >= 1.
        share: Share of an image's patches that is replaced, in (0, 1); at least one patch.

    Raises:
        ValueError: If a setting is out of its range.
    """

    num_prefix_tokens: int
    grid: tuple[int, int]
    num_neighbors: int = 30
    share: float = 0.05

    def __post_init__(self) -> None:
        _check_settings(self.num_neighbors, self.share)

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> same shape and dtype; prefix tokens and inliers are unchanged bit for bit.

        Raises:
            ValueError: If N is not rows * columns.
        """
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        return replace_by_neighbors(prefix, patches, self.outliers(patches), self.grid)

    def outliers(self, patches: Tensor) -> Tensor:
        """True at the patches (B, N, D) that are replaced, (B, N)."""
        factors = local_outlier_factor(patches, self.num_neighbors)
        largest = factors.topk(max(round(self.share * patches.shape[1]), 1), dim=-1).indices
        return torch.zeros_like(factors, dtype=torch.bool).scatter(1, largest, True)


@dataclass(frozen=True)
class LocalOutlierMethod(RefinerMethod):
    """Distils features without their local outliers (after Bai et al., "Self-Calibrated CLIP", arXiv 2411.15869).

    The paper's code replaces them before the last block of CLIP only, by the mean of the direct neighbours, and
    changes the attention as well; here they are replaced after every distilled block.

    Args:
        num_neighbors: Nearest neighbours of the local outlier factor, >= 1; limited to N - 1.
        share: Share of an image's patches that is replaced, in (0, 1).

    Raises:
        ValueError: If a setting is out of its range.
    """

    name = "local_outlier_factor"
    title = "local outlier factor"

    num_neighbors: int = 30
    share: float = 0.05

    def __post_init__(self) -> None:
        _check_settings(self.num_neighbors, self.share)

    def make_refiner(self, view: ViTView, grid: tuple[int, int]) -> LocalOutlierMean:
        """Returns the refiner for a teacher; see :meth:`RefinerMethod.make_refiner`."""
        return LocalOutlierMean(view.num_prefix_tokens, grid, self.num_neighbors, self.share)


def _check_settings(num_neighbors: int, share: float) -> None:
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` must be at least 1, got {num_neighbors!r}")
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie in (0, 1), got {share!r}")
