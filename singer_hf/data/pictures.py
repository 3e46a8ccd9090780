"""Normalised images as pictures that can be shown."""

import torch
from torch import Tensor


def to_pictures(
    pixel_values: Tensor, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Tensor:
    """Convert normalised images (K, 3, H, W) to pictures (K, H, W, 3) in [0, 1], on the CPU.

    Args:
        pixel_values: Normalised images (K, 3, H, W).
        mean: Per-channel mean of the normalisation. If it or ``std`` is None, each image is stretched to [0, 1].
        std: Per-channel standard deviation of the normalisation.
    """
    pixels = pixel_values.detach().float().cpu()
    if mean is not None and std is not None:
        pixels = pixels * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    else:
        lowest, highest = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        pixels = (pixels - lowest) / (highest - lowest).clamp(min=1e-12)
    return pixels.clamp(0, 1).permute(0, 2, 3, 1)
