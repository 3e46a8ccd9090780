"""Datasets of pixel values: images are decoded and transformed on the worker processes when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import get_worker_info

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.decoding import decode_image, decode_pixels
from singer_hf.data.pixels import PixelNormalization
from singer_hf.data.transforms import eval_transform, train_transform


def prepare_image_dataset(
    dataset: Any,
    processor: Any,
    *,
    train: bool,
    image_column: str | None = None,
    color_jitter: float = 0.0,
    seed: int = 0,
    normalize: bool = True,
) -> Any:
    """Prepare the dataset that a trainer was given: rows of ``pixel_values`` (3, H, W) and, if it has any, ``labels``.

    Args:
        dataset: A dataset of the `datasets` library with images, or a dict of such datasets. Anything else, and a
            dataset whose own transform already yields ``pixel_values``, is returned unchanged.
        processor: Image processor of the student, from which size and normalisation are taken.
        train: True: random crop and flip. False: the processor's own deterministic steps.
        image_column: Column with the images. If None, it is detected.
        color_jitter: Strength of the colour jitter in training, >= 0.
        seed: Seed of crops and flips.
        normalize: False: rows of ``pixels`` that the device shall normalise, see `transform_images`.

    Raises:
        ValueError: There is no image column, the dataset is empty, or there is no processor.
    """
    if isinstance(dataset, dict):
        options = {"train": train, "image_column": image_column, "color_jitter": color_jitter}
        options |= {"seed": seed, "normalize": normalize}
        return {name: prepare_image_dataset(part, processor, **options) for name, part in dataset.items()}
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset) or has_pixel_values(dataset):
        return dataset
    if processor is None:
        raise ValueError(
            "`processing_class` must be an image processor for a dataset of images, got None; load one with "
            "`AutoImageProcessor.from_pretrained`"
        )
    if isinstance(dataset, datasets.Dataset) and not len(dataset):
        raise ValueError("the dataset is empty: it has an image column but no rows")
    transform = train_transform(processor, color_jitter=color_jitter) if train else eval_transform(processor)
    rows = select_image_and_label(dataset, image_column=image_column)
    return transform_images(rows, transform, seed=seed, normalize=normalize)


def has_pixel_values(dataset: datasets.Dataset | datasets.IterableDataset) -> bool:
    """Whether the rows of a dataset have ``pixel_values``, as a column or by a transform of its own."""
    if "pixel_values" in (dataset.column_names or ()):
        return True
    format_type = dataset.format["type"] if isinstance(dataset, datasets.Dataset) else None
    return format_type == "custom" and len(dataset) > 0 and "pixel_values" in dataset[0]


def transform_images(
    dataset: datasets.Dataset | datasets.IterableDataset,
    transform: Callable,
    *,
    seed: int = 0,
    normalize: bool = True,
) -> ImageDataset | IterableImageDataset:
    """Decode and transform the images of a dataset lazily, on the worker processes.

    Args:
        dataset: A dataset with an undecoded column "image", as `load_image_dataset` and `select_image_and_label`
            return it.
        transform: PIL image -> tensor (3, H, W), or a transform of 8-bit pixels such as `train_transform(processor)`.
        seed: Seed of the random transforms, at least 0. Each image has its own generator, seeded by
            (seed, epoch, index), so a resumed run and any number of workers see the same crops. (Streaming:
            (seed, epoch, worker, position), so the number of workers must stay the same.)
        normalize: False: the workers send "pixels", uint8 (3, H, W), which `normalization` of the result makes
            pixel values on the device, at a quarter of the memory. Other transforms than of pixels ignore it.

    Returns:
        A torch dataset of rows for `ImageCollator`: {"pixel_values" or "pixels", "labels"?}, or {"error"} for a
        broken image.

    Raises:
        ValueError: The dataset has no column "image".
    """
    if "image" not in (dataset.column_names or ()):
        raise ValueError(
            f'`dataset` must have a column "image", got {dataset.column_names}; see `select_image_and_label`.'
        )
    wrapper = IterableImageDataset if isinstance(dataset, datasets.IterableDataset) else ImageDataset
    return wrapper(dataset, transform, seed, normalize)


class ImageDataset(torch.utils.data.Dataset):
    """A map-style dataset of transformed images, created by `transform_images`.

    Args:
        dataset: Dataset with an undecoded column "image".
        transform: See `transform_images`.
        seed: Seed of the random transforms.
        normalize: Whether the rows hold normalised "pixel_values", not "pixels".

    Attributes:
        normalization: What "pixels" are still to go through; None if the rows hold "pixel_values".
    """

    def __init__(self, dataset: datasets.Dataset, transform: Callable, seed: int, normalize: bool = True) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.normalization = _left_to_the_device(transform, normalize)
        # Shared memory, so that persistent workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return self._load(index, self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch, which `datasets` reads at once; torch's loader asks for it."""
        indices = [range(len(self))[index] for index in indices]
        return [self._load(index, row) for index, row in zip(indices, _rows(self.dataset, indices), strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Change the random crops; accelerate's data loader calls this at the start of an epoch."""
        self._epoch.fill_(epoch)

    def _load(self, index: int, row: dict[str, Any]) -> dict[str, Any]:
        seed = (self.seed, int(self._epoch), index)
        return _load_row(row, self.transform, seed, f"row {index}", self.normalization is None)


class IterableImageDataset(torch.utils.data.IterableDataset):
    """A streaming dataset of transformed images, created by `transform_images`.

    Args:
        dataset: Streaming dataset with an undecoded column "image".
        transform: See `transform_images`.
        seed: Seed of the random transforms.
        normalize: Whether the rows hold normalised "pixel_values", not "pixels".

    Attributes:
        normalization: What "pixels" are still to go through; None if the rows hold "pixel_values".
    """

    def __init__(
        self, dataset: datasets.IterableDataset, transform: Callable, seed: int, normalize: bool = True
    ) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.normalization = _left_to_the_device(transform, normalize)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # `datasets` gives each worker its own shards; with more workers than shards some stay idle.
        worker = get_worker_info()
        prefix = (self.seed, self.dataset.epoch, worker.id if worker else 0)
        for position, row in enumerate(self.dataset):
            where = f"row {position} of the stream"
            yield _load_row(row, self.transform, (*prefix, position), where, self.normalization is None)

    def set_epoch(self, epoch: int) -> None:
        """Change the order of the shuffled stream and the random crops."""
        self.dataset.set_epoch(epoch)


def _rows(dataset: datasets.Dataset, indices: list[int]) -> list[dict[str, Any]]:
    columns = dataset[indices]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _left_to_the_device(transform: Callable, normalize: bool) -> PixelNormalization | None:
    return transform.normalization if not normalize and hasattr(transform, "to_pixels") else None


def _load_row(row: dict, transform: Callable, seed: tuple[int, ...], where: str, normalize: bool) -> dict[str, Any]:
    try:
        values = _load_values(row["image"], transform, seed, normalize)
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files.
        path = row["image"].get("path") if isinstance(row["image"], dict) else None
        return {"error": f"{path or where} ({type(error).__name__}: {error})"}
    label = row.get("label")
    return values if label is None else values | {"labels": label}


def _load_values(
    encoded: dict[str, Any], transform: Callable, seed: tuple[int, ...], normalize: bool
) -> dict[str, torch.Tensor]:
    if not hasattr(transform, "to_pixels"):
        return {"pixel_values": _seeded(transform, decode_image(encoded), seed)}
    pixels = _seeded(transform.to_pixels, decode_pixels(encoded), seed)
    return {"pixel_values": transform.normalization(pixels)} if normalize else {"pixels": pixels}


def _seeded(transform: Callable, image: Any, seed: tuple[int, ...]) -> torch.Tensor:
    """Apply a transform with its own random numbers and restore the state of the process's generator."""
    state = torch.get_rng_state()
    try:
        # Not `torch.manual_seed`, which would reseed the accelerator too.
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        return transform(image)
    finally:
        torch.set_rng_state(state)
