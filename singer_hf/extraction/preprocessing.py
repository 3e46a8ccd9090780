"""From images to pixel values: the image processor, the size, and batches of images that are no dataset."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from datasets import IterableDataset
from PIL import Image, ImageOps
from torch import Tensor, nn

from singer_hf.data.image_processors import image_spec, load_image_processor
from singer_hf.data.transforms import eval_transform, resize_transform
from singer_hf.vit.inference import pixel_batches, unwrap_peft
from singer_hf.vit.structure import view_vit

Transform = Callable[[Image.Image], Tensor]


def make_transform(model: nn.Module, processor: Any, image_size: int | tuple[int, int] | None) -> Transform:
    """Builds the transform of the images for a model: PIL image -> tensor (3, H, W).

    Args:
        model: The model.
        processor: Image processor, or the folder or Hub id where it is saved; None takes that of the model's folder.
        image_size: Edge, or height and width, in pixels; None takes that of the image processor.

    Raises:
        ValueError: If there is no image processor.
    """
    found = processor
    if processor is None or isinstance(processor, str | os.PathLike):
        name = processor or getattr(getattr(unwrap_peft(model), "config", None), "name_or_path", None)
        found = load_image_processor(os.fspath(name) if name else None)
        if found is None:
            raise ValueError(
                f"`processor` must be an image processor, or the folder or Hub id of one, got {processor!r} and none "
                f"saved with the model {name!r}; load one with `AutoImageProcessor.from_pretrained`, or pass pixel "
                "values"
            )
    if image_size is None:
        return eval_transform(found)
    return resize_transform(size_pair(image_size), image_spec(found))


def check_image_size(model: nn.Module, image_size: int | tuple[int, int] | None) -> None:
    """Checks that whole patches fill images of this size, unless it is the size that the model is built for.

    Args:
        model: The model; one that is no vision transformer takes any size.
        image_size: Edge, or height and width, in pixels, or None.

    Raises:
        ValueError: If they do not, or it is no size.
    """
    if image_size is None:
        return
    size = size_pair(image_size)
    try:
        view = view_vit(model)
    except ValueError:
        return
    nearest = tuple(max(round(edge / patch), 1) * patch for edge, patch in zip(size, view.patch_size, strict=True))
    if size not in (nearest, view.image_size):
        patch = "{} x {}".format(*view.patch_size)
        raise ValueError(
            f"`image_size` must be a multiple of the model's patches of {patch} pixels, got {image_size!r}; the "
            f"nearest size is {nearest}"
        )


def size_pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an edge, or of a height and a width.

    Raises:
        ValueError: If it is neither.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in pair):
        raise ValueError(f"`image_size` must be an edge or (height, width) in pixels, got {image_size!r}")
    return pair


def iterate_pixels(
    images: Any, transform: Callable[[], Transform], batch_size: int, image_size: int | tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """Yields pixel values (B, 3, H, W) with B up to ``batch_size``, in order.

    Args:
        images: One PIL image, pixel values (B, 3, H, W), a dict with ``"pixel_values"``, or an iterable of these.
        transform: Makes the transform of PIL images; not called if there are none.
        batch_size: Largest number of images in a batch.
        image_size: The size of PIL images, which pixel values already have.

    Raises:
        ValueError: If the images are something else, one cannot be read, or pixel values shall be resized.
    """
    single = isinstance(images, Tensor | Mapping | Image.Image)
    apply, waiting = None, []
    for index, item in enumerate([images] if single else images):
        if isinstance(item, Image.Image):
            apply = apply or transform()
            waiting.append(_pixels(item, apply, index))
            if len(waiting) < batch_size:
                continue
        if waiting:
            yield torch.stack(waiting)
            waiting = []
        if not isinstance(item, Image.Image):
            for pixel_values in pixel_batches(_checked_pixels(item, index, image_size)):  # no empty ones
                yield from pixel_values.split(batch_size)
    if waiting:
        yield torch.stack(waiting)


def check_images(images: Any) -> None:
    """Checks what can be said before the first image: streams and several splits of a dataset are refused.

    Raises:
        ValueError: If ``images`` are neither images nor an iterable.
    """
    accepted = "PIL images, pixel values (B, 3, H, W), batches of them, a dataset, or a folder or Hub id"
    name = type(images).__name__
    if isinstance(images, Mapping) and "pixel_values" not in images:
        raise ValueError(f"`images` must be {accepted}, got {name} with {list(images)}; choose one split")
    if isinstance(images, IterableDataset):
        raise ValueError(f"`images` must be {accepted}, got a streamed dataset; load it without `streaming`")
    if not isinstance(images, Iterable | Image.Image) and not hasattr(images, "__getitem__"):
        raise ValueError(f"`images` must be {accepted}, got {name}")


def _pixels(image: Image.Image, transform: Transform, index: int) -> Tensor:
    try:
        return transform(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files.
        name = getattr(image, "filename", None) or f"image {index}"
        raise ValueError(
            f"`images` must be readable, got {name} ({type(error).__name__}: {error}); remove it"
        ) from error


def _checked_pixels(item: Any, index: int, image_size: int | tuple[int, int] | None) -> Tensor:
    if isinstance(item, Mapping):
        item = item.get("pixel_values")
    if not isinstance(item, Tensor):
        raise ValueError(
            f"`images` must hold PIL images or pixel values (B, 3, H, W), got {type(item).__name__} at position "
            f"{index}; yield batches of pixel values, or dicts with 'pixel_values'"
        )
    if image_size is not None:
        raise ValueError(f"`image_size` must be None for pixel values, got {image_size!r}; resize them yourself")
    if not item.is_floating_point():
        raise ValueError(
            f"`images` must be normalised pixel values of a floating type, got {item.dtype}; pass PIL images, which "
            "the image processor normalises"
        )
    return item
