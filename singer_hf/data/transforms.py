"""Transforms from a PIL image of any mode to the normalised tensor that a model expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from singer_hf.data.image_processors import ImageSpec, image_spec

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def train_transform(
    processor: Any,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: bool = True,
    color_jitter: float = 0.0,
) -> v2.Compose:
    """Build the training transform: random resized crop, flip, optional colour jitter, normalisation.

    Args:
        processor: The student's image processor; it defines size, interpolation, mean and std.
        scale: Smallest and largest share of the image's area a crop may cover, 0 < low <= high <= 1. The default is
            that of torchvision, timm and DeiT for training on ImageNet ("Going deeper with convolutions", 2015).
        ratio: Smallest and largest width / height of a crop before it is resized.
        hflip: Whether to mirror half of the images.
        color_jitter: Strength of brightness, contrast and saturation jitter, at least 0; 0 keeps the colours.

    Returns:
        A picklable transform: PIL image of any mode and size -> float32 tensor (3, H, W).

    Raises:
        ValueError: A range is out of bounds, or the processor is not supported (see `image_spec`).
    """
    _check_range("scale", scale, upper=1.0)
    _check_range("ratio", ratio, upper=float("inf"))
    if color_jitter < 0:
        raise ValueError(f"`color_jitter` must be at least 0, got {color_jitter!r}; 0 turns it off.")
    spec = image_spec(processor)
    steps: list[Callable] = [
        to_rgb,
        v2.RandomResizedCrop(spec.size, scale=scale, ratio=ratio, interpolation=spec.interpolation, antialias=True),
    ]
    if hflip:
        steps.append(v2.RandomHorizontalFlip())
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    return v2.Compose([*steps, *_normalize(spec)])


def eval_transform(processor: Any) -> v2.Compose:
    """Build the evaluation transform: any image to RGB, then the image processor itself.

    Args:
        processor: The image processor of the model that is evaluated.

    Returns:
        A picklable transform: PIL image of any mode and size -> float32 tensor (3, H, W), equal to the output of the
        processor. If the processor only resizes the shorter edge, the centre of its output is cropped, because a
        batch needs one size.

    Raises:
        ValueError: The processor is not supported (see `image_spec`).
    """
    # The crop only has an effect after a processor that only resizes the shorter edge.
    return v2.Compose([to_rgb, partial(_run_processor, processor), v2.CenterCrop(image_spec(processor).size)])


def resize_transform(image_size: Sequence[int], spec: ImageSpec) -> v2.Compose:
    """Build a transform to another size than that of the image processor: the whole image, resized and normalised.

    Args:
        image_size: Height and width of the result in pixels; the aspect of the image is not kept.
        spec: Normalisation and interpolation.

    Returns:
        A picklable transform: PIL image of any mode and size -> float32 tensor (3, H, W).
    """
    resize = v2.Resize(list(image_size), spec.interpolation, antialias=True)
    return v2.Compose([to_rgb, resize, *_normalize(spec)])


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


def _normalize(spec: ImageSpec) -> list[Callable]:
    """Steps from an RGB image to a normalised tensor."""
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(spec.mean, spec.std),
        v2.ToPureTensor(),
    ]


def _to_eight_bit(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0)
    values = values / _white_level(image.mode, float(values.max())) * 255.0
    return Image.fromarray(values.clip(0.0, 255.0).round().astype(np.uint8))


def _white_level(mode: str, peak: float) -> float:
    """Value of white: 65535 for integers; for floats the smallest usual range (1, 255, 65535) that holds the peak."""
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)
    return next((top for top in ranges if peak <= top), peak)


def _run_processor(processor: Any, image: Image.Image) -> torch.Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]


def _check_range(name: str, value: tuple[float, float], upper: float) -> None:
    low, high = value
    if not 0 < low <= high <= upper:
        limit = "" if upper == float("inf") else f" <= {upper:g}"
        raise ValueError(f"`{name}` must be a pair with 0 < low <= high{limit}, got {value!r}.")
