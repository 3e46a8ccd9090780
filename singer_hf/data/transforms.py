"""Transforms from an image of any mode to the normalised tensor that a model expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from singer_hf.data.image_processors import ImageSpec, image_spec
from singer_hf.data.pixels import PixelNormalization, RandomCrop, RandomFlip, resize_pixels

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# Images on which a processor is compared with its own result on pixels: a large and a small one.
_TRIED_SIZES = ((131, 283), (23, 17))


class PixelTransform:
    """An image to the normalised tensor that a model expects, by steps on pixels of 8 bits.

    Args:
        steps: Transforms of pixels: uint8 (3, H, W) -> uint8 (3, h, w).
        normalization: What follows them; it may as well run on the device, see `ImageDataset`.
    """

    def __init__(self, steps: Sequence[Callable], normalization: PixelNormalization) -> None:
        self.steps, self.normalization = tuple(steps), normalization

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """PIL image of any mode, or pixels uint8 (3, H, W) -> normalised float32 (3, h, w)."""
        return self.normalization(self.to_pixels(image))

    def to_pixels(self, image: Image.Image | Tensor) -> Tensor:
        """PIL image of any mode, or pixels uint8 (3, H, W) -> uint8 (3, h, w), not normalised."""
        pixels = image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(to_rgb(image))
        for step in self.steps:
            pixels = step(pixels)
        return pixels


def train_transform(
    processor: Any,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: bool = True,
    color_jitter: float = 0.0,
) -> PixelTransform:
    """Build the training transform: random resized crop, flip, optional colour jitter, normalisation.

    Args:
        processor: The student's image processor; it defines size, interpolation, mean and std.
        scale: Smallest and largest share of the image's area a crop may cover, 0 < low <= high <= 1. The default is
            that of torchvision, timm and DeiT for training on ImageNet ("Going deeper with convolutions", 2015).
        ratio: Smallest and largest width / height of a crop before it is resized.
        hflip: Whether to mirror half of the images.
        color_jitter: Strength of brightness, contrast and saturation jitter, at least 0; 0 keeps the colours.

    Returns:
        A picklable transform: image of any mode and size -> float32 tensor (3, H, W).

    Raises:
        ValueError: A range is out of bounds, or the processor is not supported (see `image_spec`).
    """
    _check_range("scale", scale, upper=1.0)
    _check_range("ratio", ratio, upper=float("inf"))
    if color_jitter < 0:
        raise ValueError(f"`color_jitter` must be at least 0, got {color_jitter!r}; 0 turns it off.")
    spec = image_spec(processor)
    steps: list[Callable] = [RandomCrop(spec.size, scale, ratio, spec.interpolation)]
    if hflip:
        steps.append(RandomFlip())
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    return PixelTransform(steps, PixelNormalization(spec.mean, spec.std))


def eval_transform(processor: Any, image_size: Sequence[int] | None = None) -> PixelTransform | v2.Compose:
    """Build the evaluation transform: any image to RGB, then the image processor itself.

    Args:
        processor: The image processor of the model that is evaluated.
        image_size: Height and width in pixels to which whole images are resized instead; see `resize_transform`.

    Returns:
        A picklable transform: image of any mode and size -> float32 tensor (3, H, W), equal to the output of the
        processor within rounding. If the processor only resizes the shorter edge, the centre of its output is
        cropped, because a batch needs one size. The processor resizes and crops pixels of 8 bits if that gives the
        same; otherwise the transform is a `v2.Compose` that takes PIL images only.

    Raises:
        ValueError: The processor is not supported (see `image_spec`).
    """
    spec = image_spec(processor)
    if image_size is not None:
        return resize_transform(image_size, spec)
    # The crop only has an effect after a processor that only resizes the shorter edge.
    crop = v2.CenterCrop(spec.size)
    whole = v2.Compose([to_rgb, partial(_run_processor, processor), crop])
    fast = PixelTransform([partial(_resize_by_processor, processor), crop], PixelNormalization(spec.mean, spec.std))
    return fast if _agree(fast, whole) else whole


def resize_transform(image_size: Sequence[int], spec: ImageSpec) -> PixelTransform:
    """Build a transform to another size than that of the image processor: the whole image, resized and normalised.

    Args:
        image_size: Height and width of the result in pixels; the aspect of the image is not kept.
        spec: Normalisation and interpolation.

    Returns:
        A picklable transform: image of any mode and size -> float32 tensor (3, H, W).
    """
    resize = partial(resize_pixels, size=tuple(image_size), interpolation=spec.interpolation)
    return PixelTransform([resize], PixelNormalization(spec.mean, spec.std))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    Args:
        image: Image of any mode. Transparent parts become white; 16-bit, 32-bit and float greyscale is rescaled, not
            clipped.

    Returns:
        The image in mode "RGB".

    Raises:
        ValueError: Pillow cannot convert the mode to RGB.
    """
    if image.mode in _DEEP_MODES:
        image = _to_eight_bit(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_eight_bit(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0)
    values = values / _white_level(image.mode, float(values.max())) * 255.0
    return Image.fromarray(values.clip(0.0, 255.0).round().astype(np.uint8))


def _white_level(mode: str, peak: float) -> float:
    """Value of white: 65535 for integers; for floats the smallest usual range (1, 255, 65535) that holds the peak."""
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)
    return next((top for top in ranges if peak <= top), peak)


def _run_processor(processor: Any, image: Image.Image) -> Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]


def _resize_by_processor(processor: Any, pixels: Tensor) -> Tensor:
    """All that the processor does to pixels (3, H, W) but their normalisation."""
    only = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_first"}
    return processor(pixels, return_tensors="pt", **only)["pixel_values"][0]


def _agree(fast: PixelTransform, whole: Callable) -> bool:
    """Whether two transforms of images differ by less than a step of 8 bits, and the pixels have 8 bits."""
    generator = np.random.default_rng(0)
    for size in _TRIED_SIZES:
        image = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        try:
            pixels = fast.to_pixels(image)
        except Exception:  # a processor that takes no pixels, or not these arguments, raises almost anything
            return False
        expected = whole(image)
        if pixels.dtype != torch.uint8 or pixels.shape != expected.shape:
            return False
        steps = (fast.normalization(pixels) - expected) * torch.tensor(fast.normalization.std).view(-1, 1, 1) * 255
        if steps.abs().max() > 1.01:
            return False
    return True


def _check_range(name: str, value: tuple[float, float], upper: float) -> None:
    low, high = value
    if not 0 < low <= high <= upper:
        limit = "" if upper == float("inf") else f" <= {upper:g}"
        raise ValueError(f"`{name}` must be a pair with 0 < low <= high{limit}, got {value!r}.")
