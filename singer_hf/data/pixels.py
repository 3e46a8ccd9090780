"""Pixels of 8 bits, as the loader's workers send them: crop, resize, flip, and the normalisation on the device.

The steps are those of `torchvision.transforms.v2`, with the same random numbers, without its search for images among
the arguments: that takes as long as the work on one image of 224 x 224 pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

# What torch resizes in another way or, before its newest versions, not at all.
_PILLOW_ONLY = tuple(InterpolationMode(name) for name in ("nearest", "lanczos", "box", "hamming"))
_FAST = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)


@dataclass(frozen=True)
class PixelNormalization:
    """Maps a pixel value v of 0..255 to (v / 255 - mean) / std, on the device of the pixels.

    Attributes:
        mean: Per-channel mean, in units of pixels scaled to 0..1.
        std: Per-channel standard deviation, in the same units.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (..., 3, H, W) -> normalised float32 (..., 3, H, W)."""
        scaled = pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
        return scaled.sub_(_channels(self.mean, pixels.device)).div_(_channels(self.std, pixels.device))


@lru_cache(maxsize=32)  # a copy to the device in every step would wait for all its work
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


class RandomCrop:
    """Cuts a random part out of pixels and resizes it: uint8 (3, H, W) -> uint8 (3, h, w).

    Args:
        size: Height and width of the result in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height of the part.
        interpolation: Interpolation mode of the resize.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolation: InterpolationMode,
    ) -> None:
        self.size, self.scale, self.ratio, self.interpolation = size, scale, ratio, interpolation
        self._log_ratio = torch.log(torch.tensor(ratio)).tolist()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (3, H, W) -> pixels (3, h, w)."""
        top, left, height, width = self.draw_box(*pixels.shape[1:])
        return resize_pixels(pixels[:, top : top + height, left : left + width], self.size, self.interpolation)

    def draw_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draws (top, left, height, width) of a part, from the numbers that `v2.RandomResizedCrop` would draw."""
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.scale).item()
            aspect = torch.empty(1).uniform_(*self._log_ratio).exp_().item()
            box = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < box[0] <= height and 0 < box[1] <= width:
                top = torch.randint(0, height - box[0] + 1, (1,)).item()
                return top, torch.randint(0, width - box[1] + 1, (1,)).item(), *box
        return self._central_box(height, width)

    def _central_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The largest part in the middle whose aspect is allowed."""
        box = height, width
        if width / height < min(self.ratio):
            box = round(width / min(self.ratio)), width
        elif width / height > max(self.ratio):
            box = height, round(height * max(self.ratio))
        return (height - box[0]) // 2, (width - box[1]) // 2, *box


class RandomFlip:
    """Mirrors half of the images: pixels (3, H, W) -> pixels (3, H, W)."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (3, H, W) -> pixels (3, H, W)."""
        return pixels.flip(-1) if torch.rand(1) < 0.5 else pixels


def stack_pixels(images: Sequence[Tensor]) -> Tensor:
    """Stacks images (3, H, W) to (B, 3, H, W); bytes stay as they lie in memory, the channels last."""
    rows = [image.permute(1, 2, 0) for image in images]
    if rows[0].dtype == torch.uint8 and rows[0].is_contiguous():
        return torch.stack(rows).permute(0, 3, 1, 2)
    return torch.stack(list(images))


def resize_pixels(pixels: Tensor, size: Sequence[int], interpolation: InterpolationMode) -> Tensor:
    """Resizes with anti-aliasing, within rounding as Pillow does.

    Args:
        pixels: uint8 (3, H, W).
        size: Height and width of the result in pixels.
        interpolation: Interpolation mode.

    Returns:
        uint8 (3, h, w).
    """
    if interpolation in _PILLOW_ONLY:
        image = v2.functional.to_pil_image(pixels)
        return v2.functional.pil_to_tensor(v2.functional.resize(image, list(size), interpolation))
    if interpolation not in _FAST or not _resizes_bytes():
        return v2.functional.resize(pixels, list(size), interpolation, antialias=True)
    image = pixels[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(image, tuple(size), mode=interpolation.value, antialias=True)[0]


@lru_cache(maxsize=1)
def _resizes_bytes() -> bool:
    """Whether torch's resize of bytes is a fast one; elsewhere torchvision goes through floats."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
