"""Images that a user gives: rows of a dataset, PIL images or pixel values, checked before they are used."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from PIL import Image, ImageOps
from torch import Tensor

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.image_dataset import has_pixel_values
from singer_hf.vit.inference import pixel_batches

Transform = Callable[[Image.Image], Tensor]


def image_rows(images: Any, image_column: str | None = None) -> Dataset | None:
    """Returns the rows of images that are still to be transformed, with the column "image"; None for all other forms.

    Args:
        images: A dataset with a column of images, a PIL image, or a list of them.
        image_column: Column with the images; None detects it.

    Raises:
        ValueError: If the dataset has no column of images.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list | tuple) and images and all(isinstance(image, Image.Image) for image in images):
        images = Dataset.from_dict({"image": list(images)})
    if not isinstance(images, Dataset) or has_pixel_values(images):
        return None
    return select_image_and_label(images, image_column=image_column)


def check_images(images: Any) -> None:
    """Checks what can be said before the first image: streams and several splits of a dataset are refused.

    Args:
        images: Images in any form but a folder or Hub id.

    Raises:
        ValueError: If they are neither images nor an iterable.
    """
    accepted = "PIL images, pixel values (B, 3, H, W), batches of them, a dataset, or a folder or Hub id"
    name = type(images).__name__
    if isinstance(images, Mapping) and "pixel_values" not in images:
        raise ValueError(f"`images` must be {accepted}, got {name} with {list(images)}; choose one split")
    if isinstance(images, IterableDataset):
        raise ValueError(f"`images` must be {accepted}, got a streamed dataset; load it without `streaming`")
    if not isinstance(images, Iterable | Image.Image) and not hasattr(images, "__getitem__"):
        raise ValueError(f"`images` must be {accepted}, got {name}")


def iterate_pixels(
    images: Any,
    batch_size: int,
    transform: Callable[[], Transform] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Iterator[Tensor]:
    """Yields pixel values (B, 3, H, W) with B up to ``batch_size``, in order. Single images are put together.

    Args:
        images: One PIL image, pixel values (B, 3, H, W) or (3, H, W), a dict with ``"pixel_values"``, or an iterable
            of these.
        batch_size: Largest number of images in a batch.
        transform: Makes the transform of PIL images; not called if there are none. None refuses them.
        image_size: The size of PIL images, which pixel values already have.

    Raises:
        ValueError: If the images are something else, one cannot be read, or pixel values shall be resized.
    """
    single = isinstance(images, Tensor | np.ndarray | Mapping | Image.Image)
    apply, waiting = None, []
    for index, item in enumerate([images] if single else images):
        if isinstance(item, Image.Image) and transform is not None:
            apply = apply or transform()
            pixels = _transformed(item, apply, index)
        else:
            pixels = _checked_pixels(item, index, image_size)
        if waiting and (len(waiting) == batch_size or pixels.shape != waiting[0].shape):
            yield torch.stack(waiting)
            waiting = []
        if pixels.ndim == 3:
            waiting.append(pixels)
        else:
            for pixel_values in pixel_batches(pixels):  # no empty ones
                yield from pixel_values.split(batch_size)
    if waiting:
        yield torch.stack(waiting)


def take(batches: Iterable[Tensor], number: int) -> Iterator[Tensor]:
    """Yields the first images of batches (B, 3, H, W), and asks for no batch after them.

    Args:
        batches: The batches.
        number: Number of images.
    """
    for batch in batches:
        yield batch[:number]
        number -= len(batch)
        if number <= 0:
            return


def _transformed(image: Image.Image, transform: Transform, index: int) -> Tensor:
    try:
        return transform(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files.
        name = getattr(image, "filename", None) or f"image {index}"
        raise ValueError(
            f"`images` must be readable, got {name} ({type(error).__name__}: {error}); remove it"
        ) from error


def _checked_pixels(item: Any, index: int, image_size: int | tuple[int, int] | None) -> Tensor:
    pixels = item.get("pixel_values") if isinstance(item, Mapping) else item
    if not isinstance(pixels, Tensor | np.ndarray | list):
        raise ValueError(
            f"`images` must hold PIL images or pixel values (B, 3, H, W), got {type(item).__name__} at position "
            f"{index}; yield batches of pixel values, or dicts with 'pixel_values'"
        )
    if image_size is not None:
        raise ValueError(f"`image_size` must be None for pixel values, got {image_size!r}; resize them yourself")
    pixels = torch.as_tensor(pixels)
    if not pixels.is_floating_point():
        raise ValueError(
            f"`images` must be normalised pixel values of a floating type, got {pixels.dtype}; pass PIL images, which "
            "the image processor normalises"
        )
    return pixels
