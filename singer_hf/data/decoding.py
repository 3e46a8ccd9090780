"""Stored images to PIL images or to pixels: JPEG by torchvision's decoder, everything else by Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import torch
from datasets.utils.file_utils import is_local_path
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from singer_hf.data.transforms import to_rgb

_RGB = 3  # torchvision's number of that mode
# EXIF orientation -> what `PIL.ImageOps.exif_transpose` does, for pixels (3, H, W); the others change nothing.
_TURNS: dict[int | None, Callable[[Tensor], Tensor]] = {
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip(1, 2),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.transpose(1, 2).flip(2),
    7: lambda pixels: pixels.transpose(1, 2).flip(1, 2),
    8: lambda pixels: pixels.transpose(1, 2).flip(1),
}


def decode_image(encoded: dict[str, Any]) -> PIL.Image.Image:
    """Decode an image of at most `PIL.Image.MAX_IMAGE_PIXELS`; Pillow itself only warns up to twice as many.

    Args:
        encoded: The stored image, {"bytes", "path"}.

    Raises:
        PIL.Image.DecompressionBombWarning: If the image has more pixels.
    """
    with _bombs_refused():
        return datasets.Image().decode_example(encoded)


def decode_pixels(encoded: dict[str, Any]) -> Tensor:
    """Decode an image of any mode to RGB, turned as its EXIF orientation says; the limit is that of `decode_image`.

    The pixels are those of `to_rgb(decode_image(encoded))` within rounding. torchvision decodes JPEG files in grey or
    RGB. Pillow decodes the others and those that torchvision refuses, so it decides which files are broken.

    Args:
        encoded: The stored image, {"bytes", "path"}.

    Returns:
        The image, uint8 (3, H, W).

    Raises:
        PIL.Image.DecompressionBombWarning: If the image has more pixels.
    """
    data = _read(encoded)
    if data is not None and (pixels := _decode_jpeg(data)) is not None:
        return pixels
    return pil_to_tensor(to_rgb(decode_image(encoded if data is None else {**encoded, "bytes": data})))


@contextmanager
def _bombs_refused() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        yield


def _read(encoded: Any) -> bytes | None:
    """The bytes of the file; None if `datasets` has to get them."""
    if not isinstance(encoded, dict):
        return None
    data, path = encoded["bytes"], encoded["path"]
    return Path(path).read_bytes() if data is None and path is not None and is_local_path(path) else data


def _decode_jpeg(data: bytes) -> Tensor | None:
    """Pixels (3, H, W); None if Pillow shall decode the file."""
    if not data.startswith(b"\xff\xd8"):
        return None
    with _bombs_refused():
        header = PIL.Image.open(io.BytesIO(data))
    if header.format != "JPEG" or header.mode not in ("RGB", "L"):
        return None
    try:
        # The operator, because the function around it warns in every worker that it will move to another package.
        pixels = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB, False)
    except (RuntimeError, AttributeError):  # AttributeError: a torchvision without this decoder
        return None
    if pixels.shape != (3, header.height, header.width):
        return None
    turn = _TURNS.get(header.getexif().get(PIL.Image.ExifTags.Base.Orientation))
    return turn(pixels) if turn else pixels
