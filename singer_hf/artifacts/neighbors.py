"""Means of the ordinary patch tokens around each patch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.vit.tokens import map_to_tokens, tokens_to_map

_WINDOWS = (3, 7)


def inlier_neighbor_means(patches: Tensor, inliers: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean of the inliers in a window of 3 x 3 patches around each patch, of 7 x 7 where there are none.

    Args:
        patches: Patch tokens (B, N, D).
        inliers: True at the tokens that enter the means, (B, N).
        grid: (rows, columns) of the patches.

    Returns:
        The means (B, N, D), float32, and whether there are any inliers in the windows, (B, N).

    Raises:
        ValueError: If N is not rows * columns.
    """
    mask = tokens_to_map(inliers.unsqueeze(-1).float(), grid)
    masked = tokens_to_map(patches.float(), grid) * mask
    (near, near_sums), (wide, wide_sums) = (
        tuple(F.avg_pool2d(part, size, stride=1, padding=size // 2) for part in (mask, masked)) for size in _WINDOWS
    )
    is_near = near > 0
    means = torch.where(is_near, near_sums, wide_sums).div_(torch.where(is_near, near, wide).clamp(min=1e-6))
    return map_to_tokens(means), map_to_tokens(wide > 0).squeeze(-1)
