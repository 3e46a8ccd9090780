"""Rows that are decoded and transformed on the worker processes, and the collator that drops broken images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from datasets import Image as ImageFeature
from torch.utils.data import get_worker_info

_MAX_WORKERS = 128


def transform_images(
    dataset: Dataset | IterableDataset, transform: Callable, *, seed: int = 0
) -> ImageDataset | IterableImageDataset:
    """Decode and transform the rows of a dataset when they are read, on the worker processes.

    Args:
        dataset: What `load_image_dataset` or `select_image_and_label` returns.
        transform: PIL image -> tensor (3, H, W), such as `train_transform(processor)`.
        seed: Seed of the random transforms, at least 0. Each image draws from a generator of its own, seeded by
            (seed, epoch, index), so a resumed run and any number of workers see the same crops. (Streaming: by
            (seed, epoch, worker, position), so the number of workers must stay the same.)

    Returns:
        A torch dataset of rows for `ImageCollator`: {"pixel_values", "labels"?}, or {"error"} for a broken image.

    Raises:
        ValueError: The dataset has no column "image".
    """
    if "image" not in (dataset.column_names or ()):
        raise ValueError(
            f'`dataset` must have a column "image", got {dataset.column_names}; see `select_image_and_label`.'
        )
    wrapper = IterableImageDataset if isinstance(dataset, IterableDataset) else ImageDataset
    return wrapper(dataset, transform, seed)


class ImageDataset(torch.utils.data.Dataset):
    """A map-style dataset whose rows are decoded and transformed when read; see `transform_images`."""

    def __init__(self, dataset: Dataset, transform: Callable, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        # Shared memory: workers that live longer than an epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return _read_row(self.dataset[index], self.transform, (self.seed, int(self._epoch), index), f"row {index}")

    def set_epoch(self, epoch: int) -> None:
        """Draw other random crops from now on (called by accelerate's data loader at the start of an epoch)."""
        self._epoch.fill_(epoch)


class IterableImageDataset(torch.utils.data.IterableDataset):
    """A streaming dataset whose rows are decoded and transformed when read; see `transform_images`."""

    def __init__(self, dataset: IterableDataset, transform: Callable, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # `datasets` gives each worker shards of its own; more workers than shards stay idle.
        worker = get_worker_info()
        prefix = (self.seed, self.dataset.epoch, worker.id if worker else 0)
        for position, row in enumerate(self.dataset):
            yield _read_row(row, self.transform, (*prefix, position), f"row {position} of the stream")

    def set_epoch(self, epoch: int) -> None:
        """Shuffle differently and draw other random crops from now on."""
        self.dataset.set_epoch(epoch)


@dataclass
class ImageCollator:
    """Stack rows to a batch, drop broken images and stop the run when they are too many.

    The counts are kept in shared memory: workers add to them, and they go on from epoch to epoch. Under several
    training processes each has its own.

    Args:
        max_broken_share: Largest share of broken images, 0..1.
        min_seen: The share is taken of at least this many images: the run stops as soon as
            broken > max_broken_share * max(seen, min_seen); with the defaults, two broken ones are always let pass.
    """

    max_broken_share: float = 0.01
    min_seen: int = 200
    _counts: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"`max_broken_share` must be between 0 and 1, got {self.max_broken_share!r}.")
        # One row (seen, broken) a worker, so that no two processes write to the same number.
        self._counts = torch.zeros((_MAX_WORKERS + 1, 2), dtype=torch.int64).share_memory_()

    @property
    def seen(self) -> int:
        """Images read so far, the broken ones included."""
        return int(self._counts[:, 0].sum())

    @property
    def broken(self) -> int:
        """Images dropped so far."""
        return int(self._counts[:, 1].sum())

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            rows: What `transform_images` yields.

        Returns:
            {"pixel_values": (B, 3, H, W) float32} and, where the rows have labels, {"labels": (B,) int64}; B is
            smaller than the number of rows when some were broken.

        Raises:
            RuntimeError: More than `max_broken_share` of the images are broken, or all of this batch.
            ValueError: The images differ in size, or only some have a label.
        """
        errors = [row["error"] for row in rows if "error" in row]
        self._count(len(rows), errors)
        rows = [row for row in rows if "error" not in row]
        if not rows:
            raise RuntimeError(
                f"all {len(errors)} images of a batch are broken, for example {errors[-1]}; repair or remove them, or "
                "use larger batches."
            )
        batch = {"pixel_values": _stack([row["pixel_values"] for row in rows])}
        labels = [row["labels"] for row in rows if "labels" in row]
        if labels:
            batch["labels"] = _stack_labels(labels, len(rows))
        return batch

    def _count(self, num_rows: int, errors: list[str]) -> None:
        worker = get_worker_info()
        slot = worker.id % _MAX_WORKERS + 1 if worker else 0
        self._counts[slot] += torch.tensor([num_rows, len(errors)])
        if errors and self.broken > self.max_broken_share * max(self.seen, self.min_seen):
            raise RuntimeError(
                f"{self.broken} of the {self.seen} images read so far are broken, more than `max_broken_share` = "
                f"{self.max_broken_share:g} allows; the last one: {errors[-1]}. Repair or remove them."
            )


def _read_row(row: dict, transform: Callable, seed: tuple[int, ...], where: str) -> dict[str, Any]:
    try:
        image = ImageFeature().decode_example(row["image"])
        pixel_values = _seeded(transform, image, seed)
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files.
        path = row["image"].get("path") if isinstance(row["image"], dict) else None
        return {"error": f"{path or where} ({type(error).__name__}: {error})"}
    label = row.get("label")
    return {"pixel_values": pixel_values} if label is None else {"pixel_values": pixel_values, "labels": label}


def _seeded(transform: Callable, image: Any, seed: tuple[int, ...]) -> torch.Tensor:
    """Run a transform on random numbers of its own, leaving the process's generator where it was."""
    state = torch.get_rng_state()
    try:
        # Not `torch.manual_seed`, which would reseed the accelerator too.
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        return transform(image)
    finally:
        torch.set_rng_state(state)


def _stack(images: list[torch.Tensor]) -> torch.Tensor:
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(f"`transform` must give all images one shape, got {shapes}; end it with a crop.")
    return torch.stack(images).float()


def _stack_labels(labels: list[int], num_rows: int) -> torch.Tensor:
    if len(labels) < num_rows:
        raise ValueError(f"`labels` must be given for all images or none, got {len(labels)} for {num_rows} images.")
    return torch.tensor(labels, dtype=torch.int64)
