"""Conversions between token sequences, prefix and patch tokens, and feature maps."""

import torch
from torch import Tensor
from torch.nn import functional as F


def split_tokens(hidden_states: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Splits tokens (B, P+N, D) into prefix (B, P, D) and patch (B, N, D) tokens."""
    return hidden_states[:, :num_prefix_tokens], hidden_states[:, num_prefix_tokens:]


def keep_tokens(hidden_states: Tensor, num_kept: int, num_prefix_tokens: int) -> Tensor:
    """Keeps the first prefix tokens and all patch tokens.

    Args:
        hidden_states: Tokens (B, P+N, D).
        num_kept: Number K of prefix tokens to keep, 0 to P.
        num_prefix_tokens: Number P of prefix tokens.

    Returns:
        Tokens (B, K+N, D); ``hidden_states`` itself if K = P.
    """
    if num_kept == num_prefix_tokens:
        return hidden_states
    return torch.cat([hidden_states[:, :num_kept], hidden_states[:, num_prefix_tokens:]], dim=1)


def tokens_to_map(patch_tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reshapes patch tokens (B, N, D) to a feature map (B, D, rows, columns).

    Raises:
        ValueError: If N is not rows * columns.
    """
    if patch_tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"{patch_tokens.shape[1]} patch tokens do not fill a grid of {grid[0]} x {grid[1]}")
    return patch_tokens.transpose(1, 2).unflatten(2, grid)


def map_to_tokens(feature_map: Tensor) -> Tensor:
    """Reshapes a feature map (B, D, rows, columns) to patch tokens (B, rows * columns, D)."""
    return feature_map.flatten(2).transpose(1, 2)


def resize_tokens(patch_tokens: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resizes the grid of patch tokens by bilinear interpolation with antialiasing.

    Args:
        patch_tokens: Patch tokens (B, N, D).
        grid: Their (rows, columns), N = rows * columns.
        target: The new (rows, columns).

    Returns:
        Patch tokens (B, N', D) on the target grid; ``patch_tokens`` itself if the grids are equal.

    Raises:
        ValueError: If N is not rows * columns of ``grid``.
    """
    if grid == target:
        return patch_tokens
    feature_map = tokens_to_map(patch_tokens, grid)
    return map_to_tokens(F.interpolate(feature_map, size=target, mode="bilinear", antialias=True, align_corners=False))
