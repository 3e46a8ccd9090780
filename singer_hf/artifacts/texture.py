"""Texture of image patches: how much the pixels inside a patch vary."""

from torch import Tensor
from torch.nn import functional as F


def patch_texture(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Standard deviation of the pixels inside each patch, as a mean over the channels.

    Args:
        pixel_values: Images (B, 3, H, W), normalised for the model; pixels that fill no patch are left out.
        patch_size: (height, width) of a patch in pixels.

    Returns:
        (B, N), float32, >= 0, in the units of ``pixel_values``, patches row by row.
    """
    pixels = pixel_values.float()
    mean = F.avg_pool2d(pixels, patch_size)
    variance = F.avg_pool2d(pixels.square(), patch_size) - mean.square()
    return variance.clamp(min=0).sqrt().mean(dim=1).flatten(1)


def patch_log_variance(pixel_values: Tensor, patch_size: int) -> Tensor:
    """Log of the pixel variance inside each patch, averaged over the channels.

    Args:
        pixel_values: Images (B, C, H, W), H and W multiples of ``patch_size``, in any scale.
        patch_size: Edge of a patch in pixels.

    Returns:
        Natural logarithm of the variance, float32 (B, N), patches row by row as a ViT orders them.

    Raises:
        ValueError: If the images are no multiple of the patch size.
    """
    height, width = pixel_values.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"`pixel_values` must have height and width that are multiples of patch_size={patch_size}, "
            f"got {height} x {width}; resize the images first"
        )
    patches = pixel_values.float().unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    variance = patches.var(dim=(-2, -1), correction=0).mean(dim=1)
    return variance.clamp_min(1e-8).log().flatten(1)
