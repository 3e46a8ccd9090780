"""Image processors: their size, normalisation and interpolation, and the processor of a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from transformers import AutoImageProcessor, ViTImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from singer_hf.configs import TRAINED, find

# Two sizes detect a processor that keeps the size of its input; a colour detects swapped channels.
_PROBE_SIZES = (48, 72)
_PROBE_COLOUR = (200, 100, 50)


@dataclass(frozen=True)
class ImageSpec:
    """Size, normalisation and interpolation of an image processor.

    Attributes:
        size: Height and width of the output in pixels.
        mean: Per-channel mean, in units of pixels scaled to 0..1.
        std: Per-channel standard deviation, in the same units. The processor maps a pixel value v of 0..255 to
            (v / 255 - mean) / std.
        interpolation: Interpolation mode of the resize.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: InterpolationMode


def image_spec(processor: Any) -> ImageSpec:
    """Measure size, normalisation and interpolation of an image processor.

    Size, mean and std are measured on plain-coloured squares instead of taken from the processor's fields, because
    processors name these fields differently (`size` or `crop_size`, a dictionary or an edge, `crop_pct`, ...).

    Args:
        processor: An image processor of `transformers`, its timm wrapper included.

    Returns:
        The measured specification.

    Raises:
        ValueError: The processor has no `image_mean`, does not return (1, 3, H, W) `pixel_values`, keeps the size of
            its input, or changes pixels in another way than scaling and shifting each channel.
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


def _name(processor: Any) -> str:
    return type(processor).__name__


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
            f"`processor` must resize or crop every image to one size, got {_name(processor)}, which keeps the "
            "size of its input; set `do_resize=True` and a `size`."
        )
    return sizes.pop()


def _check_colour(processor: Any, expected: np.ndarray, measured: np.ndarray) -> None:
    if not np.allclose(expected, measured, atol=1e-3):
        raise ValueError(
            f"`processor` must only resize, crop, rescale and normalise, got {_name(processor)}, which turns the "
            f"colour {_PROBE_COLOUR} into {measured.round(3).tolist()} instead of {expected.round(3).tolist()} "
            "(does it swap the channels?); pass a transform of your own."
        )


def _interpolation(resample: str | int) -> InterpolationMode:
    name = resample if isinstance(resample, str) else Image.Resampling(resample).name.lower()
    return InterpolationMode(name)


def load_image_processor(name: str | None) -> BaseImageProcessor | None:
    """Load the image processor saved with a model; None without a name or if none was saved.

    Args:
        name: Local folder, Hub id, or ``"demo-teacher"``.
    """
    name = name and find(name, TRAINED)
    if name is None or (Path(name).exists() and not _saves_processor(Path(name))):
        return None
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None


def find_image_processor(processor: Any, model_name: str | None) -> Any:
    """Returns an image processor that is given, or loads one by its name, or that of a model; None if there is none.

    Args:
        processor: Image processor, or the folder or Hub id where one is saved, or None.
        model_name: Folder or Hub id of the model whose processor is loaded if none is given.
    """
    if processor is None or isinstance(processor, str | os.PathLike):
        return load_image_processor(os.fspath(processor) if processor else model_name or None)
    return processor


def _saves_processor(folder: Path) -> bool:
    # Without a saved processor transformers would create one with the defaults of the model's family.
    config = folder / "config.json"
    is_timm = config.is_file() and "pretrained_cfg" in config.read_text(encoding="utf-8")
    return is_timm or (folder / "preprocessor_config.json").is_file()


def student_image_processor(
    student: nn.Module, teacher_processor: BaseImageProcessor | None
) -> BaseImageProcessor | None:
    """Create a processor for a student without one: the teacher's normalisation, the size in the student's config.

    Args:
        student: The student model.
        teacher_processor: Processor of the teacher. If None, the result is None.
    """
    size = getattr(getattr(student, "config", None), "image_size", None)
    if teacher_processor is None:
        return None
    spec = image_spec(teacher_processor)
    height, width = (size, size) if isinstance(size, int) else tuple(size or spec.size)
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=list(spec.mean), image_std=list(spec.std), resample=3
    )
