"""Normalised images as pictures to look at."""

import torch
from torch import Tensor


def to_pictures(
    pixel_values: Tensor, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Tensor:
    """Normalised images (K, 3, H, W) -> pictures (K, H, W, 3) in [0, 1]."""
    pixels = pixel_values.detach().float().cpu()
    if mean is not None and std is not None:
        pixels = pixels * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    else:
        lowest, highest = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        pixels = (pixels - lowest) / (highest - lowest).clamp(min=1e-12)
    return pixels.clamp(0, 1).permute(0, 2, 3, 1)
