"""Images of an audit: any form of images, as batches that suit each model."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from singer_hf.cards.privacy import without_paths
from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.image_processors import ImageSpec, image_spec, load_image_processor
from singer_hf.data.transforms import eval_transform, resize_transform
from singer_hf.inspection.inputs import AuditOptions
from singer_hf.inspection.models import NamedModel

_ACCEPTED = (
    "a dataset with an image column, a folder or Hub id, PIL images, or pixel values (B, 3, H, W) or batches of them"
)


class ImageBatches:
    """Batches of pixel values (B, 3, H, W) of the readable images of a dataset.

    Args:
        rows: Dataset with the column ``"image"``.
        spec: Size and normalisation of the images.
        transform: PIL image -> tensor (3, H, W).
        batch_size: Images per batch.
        num_workers: Processes that load images.

    Attributes:
        spec: See above.
        unreadable: Names and errors of the unreadable images found so far.
    """

    def __init__(
        self, rows: Dataset, spec: ImageSpec, transform: Callable, batch_size: int, num_workers: int = 0
    ) -> None:
        self.spec = spec
        self.unreadable: dict[str, None] = {}
        self._rows = transform_images(rows, transform)
        self._readable: list[int] = []
        self.loader = DataLoader(self._rows, batch_size, num_workers=num_workers, collate_fn=_collate_readable)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        self._readable, start = [], 0
        for batch in self.loader:
            self.unreadable |= dict.fromkeys(batch["errors"])
            self._readable += [start + place for place in batch["readable"]]
            start += batch["size"]
            if batch["pixel_values"] is not None:
                yield batch["pixel_values"]

    def first(self) -> Tensor:
        """Returns the first batch (B, 3, H, W).

        Raises:
            ValueError: If no image can be read.
        """
        batch = next(iter(self), None)
        if batch is None:
            raise ValueError(f"none of the {len(self.unreadable)} images can be read: {self.list_unreadable()}")
        return batch

    def pick(self, indices: Iterable[int]) -> Tensor:
        """Returns some of the readable images, (K, 3, H, W), once all batches have been iterated over.

        Args:
            indices: Their places among the readable images.
        """
        return torch.stack([self._rows[self._readable[index]]["pixel_values"] for index in indices])

    def list_unreadable(self, limit: int = 5) -> str:
        """Returns the first unreadable images with their errors as one text."""
        return "; ".join(list(self.unreadable)[:limit])


class PixelBatches:
    """Batches of pixel values (B, 3, H, W) that were given as such, normalised for the models.

    Args:
        batches: At least one batch.

    Attributes:
        spec: None: the normalisation is not known.
        unreadable: Always empty.
    """

    spec = None

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches, self.unreadable = batches, {}

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)

    def first(self) -> Tensor:
        """Returns the first batch (B, 3, H, W)."""
        return self.batches[0]

    def pick(self, indices: Iterable[int]) -> Tensor:
        """Returns some of the images, (K, 3, H, W), by their places."""
        images = list(chain.from_iterable(self.batches))
        return torch.stack([images[index] for index in indices])


def _collate_readable(rows: list[dict]) -> dict:
    readable = [place for place, row in enumerate(rows) if "pixel_values" in row]
    pixels = [rows[place]["pixel_values"] for place in readable]
    return {
        "pixel_values": torch.stack(pixels) if pixels else None,
        "errors": [row["error"] for row in rows if "error" in row],
        "readable": readable,
        "size": len(rows),
    }


def load_images(images: Any, options: AuditOptions) -> Dataset | list[Tensor]:
    """Loads the sample of images, once for all models.

    Args:
        images: See :func:`singer_hf.inspection.audit_models.audit`.
        options: For the sample.

    Returns:
        A dataset with the column ``"image"``, or batches of pixel values (B, 3, H, W).

    Raises:
        ValueError: If there are no images, or they are of another kind.
        FileNotFoundError: If there is no such dataset.
    """
    if isinstance(images, str | os.PathLike):
        sample = {"max_samples": options.max_samples, "seed": options.seed}
        return load_image_dataset(images, split=options.split, image_column=options.image_column, **sample)
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list | tuple) and images and all(isinstance(image, Image.Image) for image in images):
        images = Dataset.from_dict({"image": list(images)})
    if isinstance(images, Dataset) and not _holds_pixel_values(images):
        rows = select_image_and_label(images, image_column=options.image_column)
        if len(rows) > options.max_samples:
            rows = rows.shuffle(options.seed).select(range(options.max_samples))
        if not len(rows):
            raise ValueError("`images` must hold at least one image, got none")
        return rows
    if isinstance(images, Tensor) or (isinstance(images, Mapping) and "pixel_values" in images):
        images = [images]
    is_iterable = isinstance(images, Iterable) or hasattr(images, "__getitem__")
    if not is_iterable or isinstance(images, IterableDataset | Mapping):
        raise ValueError(f"`images` must be {_ACCEPTED}, got {type(images).__name__}")
    return _load_pixels(images, options)


def _holds_pixel_values(images: Dataset) -> bool:
    return "pixel_values" in images.column_names or (images.format["type"] == "custom" and "pixel_values" in images[0])


def _load_pixels(images: Iterable, options: AuditOptions) -> list[Tensor]:
    """The first images as batches (B, 3, H, W), kept in memory, so that all models see the same."""
    found, missing = [], options.max_samples
    for item in images:
        pixels = _checked_pixels(item)[:missing]
        found += pixels.split(options.batch_size)
        missing -= len(pixels)
        if not missing:
            break
    if not found:
        raise ValueError("`images` must hold at least one image, got none")
    return found


def _checked_pixels(item: Any) -> Tensor:
    pixels = item.get("pixel_values") if isinstance(item, Mapping) else item
    if not isinstance(pixels, Tensor | list):
        raise ValueError(f"`images` must be {_ACCEPTED}, got {type(item).__name__} among them")
    pixels = torch.as_tensor(pixels)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise ValueError(
            f"`images` must hold normalised pixel values (B, 3, H, W) of a floating type, got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}; pass PIL images, which the image processor normalises"
        )
    return pixels


def batches_for(rows: Dataset | list[Tensor], model: NamedModel, options: AuditOptions) -> ImageBatches | PixelBatches:
    """Returns the images as a model takes them.

    Args:
        rows: See :func:`load_images`.
        model: The model, whose image processor is used unless the options have one.
        options: For processor, size and batches of (B, 3, H, W).

    Raises:
        ValueError: If there is no image processor.
    """
    if isinstance(rows, list):
        if options.image_size is not None:
            raise ValueError(f"`image_size` must be left out for pixel values, got {options.image_size!r}")
        return PixelBatches(rows)
    processor = options.processor
    if processor is None or isinstance(processor, str | os.PathLike):
        processor = load_image_processor(os.fspath(processor) if processor else model.path)
    if processor is None:
        raise ValueError(
            f"`processor` (`--processor_name_or_path`) must be given: the model {model.label!r} has no image processor"
        )
    spec, transform = image_spec(processor), eval_transform(processor)
    if options.image_size is not None:
        transform = resize_transform(options.image_size, spec)
    return ImageBatches(rows, spec, transform, options.batch_size, options.num_workers)


def name_of_source(images: Any, options: AuditOptions) -> str:
    """Returns the name of the images in reports: a dataset without its path, and the seed of the sample.

    Args:
        images: As given by the user.
        options: For the seed.
    """
    if isinstance(images, str | os.PathLike):
        return f"{Path(without_paths(os.fspath(images))).name}, seed {options.seed}"
    if isinstance(images, Dataset) and not _holds_pixel_values(images):
        return f"{images.info.dataset_name or 'a dataset'}, seed {options.seed}"
    return "the given images"
