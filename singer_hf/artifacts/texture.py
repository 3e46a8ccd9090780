"""Texture of image patches: the variance of the pixels inside a patch."""

from torch import Tensor


def patch_variance(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Returns the variance of the pixels inside each patch, averaged over the channels.

    Args:
        pixel_values: Images (B, C, H, W) in any scale; pixels that do not fill a patch are ignored.
        patch_size: (height, width) of a patch in pixels.

    Returns:
        (B, N), float32, >= 0, in squared units of ``pixel_values``; patches row by row, as a ViT orders its tokens.
    """
    height, width = patch_size
    patches = pixel_values.float().unfold(2, height, height).unfold(3, width, width)
    return patches.var(dim=(-2, -1), correction=0).mean(dim=1).flatten(1)


def patch_log_variance(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Returns the natural logarithm of :func:`patch_variance`, at least log(1e-8).

    Args:
        pixel_values: Images (B, C, H, W); H and W are multiples of the patch size.
        patch_size: (height, width) of a patch in pixels.

    Returns:
        (B, N), float32, patches row by row.

    Raises:
        ValueError: If height or width of the images is not a multiple of the patch size.
    """
    height, width = pixel_values.shape[-2:]
    if height % patch_size[0] or width % patch_size[1]:
        raise ValueError(
            f"`pixel_values` must have height and width that are multiples of the patch size "
            f"{patch_size[0]} x {patch_size[1]}, got {height} x {width}; resize the images first"
        )
    return patch_variance(pixel_values, patch_size).clamp_min(1e-8).log()
