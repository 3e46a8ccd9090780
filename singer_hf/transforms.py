"""From a PIL image of any mode to the normalised tensor a model expects, as its image processor says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# Two sizes, so that a processor that keeps the size of its input is noticed; a colour, so that swapped channels are.
_PROBE_SIZES = (48, 72)
_PROBE_COLOUR = (200, 100, 50)


@dataclass(frozen=True)
class ImageSpec:
    """What an image processor makes of an image.

    Args:
        size: Height and width of the output in pixels.
        mean: Per-channel mean, in units of pixels scaled to 0..1.
        std: Per-channel standard deviation, in the same units. A pixel value v of 0..255 becomes
            (v / 255 - mean) / std, whatever mix of rescaling and normalisation the processor uses to get there.
        interpolation: How the processor resizes.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: InterpolationMode


def image_spec(processor: Any) -> ImageSpec:
    """Read size, normalisation and interpolation off an image processor.

    Size, mean and std are measured on plain-coloured squares, since processors spell them in many ways (`size` or
    `crop_size`, a dictionary or an edge, `crop_pct`, rescaling twice) and only what comes out counts.

    Args:
        processor: An image processor of `transformers`, its timm wrapper included.

    Returns:
        The measured specification.

    Raises:
        ValueError: The processor has no `image_mean`, returns no (1, 3, H, W) `pixel_values`, keeps the size of its
            input, or does more to a pixel than scale and shift it.
    """
    timm_config = getattr(processor, "data_config", None)
    if timm_config is None and getattr(processor, "image_mean", None) is None:
        raise ValueError(
            f"`processor` must be an image processor with `image_mean` and `image_std`, got {_name(processor)} "
            "without `image_mean`; load it with `AutoImageProcessor.from_pretrained`, or pass a transform of your own."
        )
    resample = timm_config["interpolation"] if timm_config else int(processor.resample)
    black, white, colour = (_plain_square(processor, level) for level in ((0, 0, 0), (255, 255, 255), _PROBE_COLOUR))
    std = 1.0 / (_centre(white) - _centre(black))
    mean = 0.0 - _centre(black) * std
    _check_colour(processor, (np.array(_PROBE_COLOUR) / 255 - mean) / std, _centre(colour))
    return ImageSpec(_output_size(processor), tuple(mean.tolist()), tuple(std.tolist()), _interpolation(resample))


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
        processor: The student's image processor; it gives size, interpolation, mean and std.
        scale: Smallest and largest share of the image's area a crop may cover, 0 < low <= high <= 1. The default is
            that of torchvision, timm and DeiT for training on ImageNet ("Going deeper with convolutions", 2015).
        ratio: Smallest and largest width / height of a crop before it is resized.
        hflip: Whether to mirror half of the images.
        color_jitter: Strength of brightness, contrast and saturation jitter, at least 0; 0 leaves the colours alone.

    Returns:
        A picklable transform: PIL image of any mode and size -> float32 tensor (3, H, W).

    Raises:
        ValueError: A range is out of bounds, or the processor cannot be read (see `image_spec`).
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
    steps += [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(spec.mean, spec.std),
        v2.ToPureTensor(),
    ]
    return v2.Compose(steps)


def eval_transform(processor: Any) -> v2.Compose:
    """Build the evaluation transform: any image to RGB, then the image processor itself.

    Args:
        processor: The image processor of the model that is evaluated.

    Returns:
        A picklable transform: PIL image of any mode and size -> float32 tensor (3, H, W), equal to what a user of the
        saved model gets from the processor. Where the processor only resizes the shorter edge, the centre of its
        output is cropped, since a batch needs one size.

    Raises:
        ValueError: The processor cannot be read (see `image_spec`).
    """
    # The crop does nothing, except after a processor that only resizes the shorter edge.
    return v2.Compose([to_rgb, partial(_run_processor, processor), v2.CenterCrop(image_spec(processor).size)])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    Args:
        image: Transparent parts are laid on white; 16-bit, 32-bit and float greyscale is rescaled, not clipped.

    Returns:
        The image in mode "RGB".

    Raises:
        ValueError: Pillow cannot convert the mode.
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
    """Value that means white: 16 bits for integers; for floats the smallest usual range (1, 255, 65535) that fits."""
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)
    return next((top for top in ranges if peak <= top), peak)


def _name(processor: Any) -> str:
    return type(processor).__name__


def _run_processor(processor: Any, image: Image.Image) -> torch.Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]


def _plain_square(processor: Any, colour: tuple[int, int, int], edge: int = _PROBE_SIZES[0]) -> torch.Tensor:
    pixel_values = processor(Image.new("RGB", (edge, edge), colour), return_tensors="pt")["pixel_values"]
    if pixel_values.ndim != 4 or pixel_values.shape[:2] != (1, 3):
        raise ValueError(
            f"`processor` must turn an image into `pixel_values` of shape (1, 3, H, W), got "
            f"{tuple(pixel_values.shape)} from {_name(processor)}; models without a fixed grid are not supported."
        )
    return pixel_values[0]


def _centre(pixels: torch.Tensor) -> np.ndarray:
    # The centre, because a centre crop larger than the resized image pads its border.
    return pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2].double().numpy()


def _output_size(processor: Any) -> tuple[int, int]:
    sizes = {tuple(_plain_square(processor, (0, 0, 0), edge).shape[-2:]) for edge in _PROBE_SIZES}
    if len(sizes) > 1:
        raise ValueError(
            f"`processor` must resize or crop every image to one size, got {_name(processor)} that keeps the "
            "size of its input; set `do_resize=True` and a `size`."
        )
    return sizes.pop()


def _check_colour(processor: Any, expected: np.ndarray, measured: np.ndarray) -> None:
    if not np.allclose(expected, measured, atol=1e-3):
        raise ValueError(
            f"`processor` must only resize, crop, rescale and normalise, got {_name(processor)} that turns the "
            f"colour {_PROBE_COLOUR} into {measured.round(3).tolist()} instead of {expected.round(3).tolist()} "
            "(does it swap the channels?); pass a transform of your own."
        )


def _interpolation(resample: str | int) -> InterpolationMode:
    name = resample if isinstance(resample, str) else Image.Resampling(resample).name.lower()
    return InterpolationMode(name)


def _check_range(name: str, value: tuple[float, float], upper: float) -> None:
    low, high = value
    if not 0 < low <= high <= upper:
        limit = "" if upper == float("inf") else f" <= {upper:g}"
        raise ValueError(f"`{name}` must be a pair with 0 < low <= high{limit}, got {value!r}.")
