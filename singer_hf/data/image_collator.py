"""The collator that stacks images to a batch and drops broken ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import get_worker_info

from singer_hf.data.pixels import stack_pixels

_MAX_WORKERS = 128
# Further tensors of a row, which are left out unless all rows have them: features of a teacher and their number.
_FURTHER = ("cached_row", "teacher_tokens")


@dataclass
class ImageCollator:
    """Stack rows to a batch, drop broken images, and stop the run when too many are broken.

    The counts are kept in shared memory: all workers add to them, over all epochs. Each training process has its own.

    Args:
        max_broken_share: Largest share of broken images, 0..1.
        min_seen: Smallest number of images the share is taken of: the run stops as soon as
            broken > max_broken_share * max(seen, min_seen). With the defaults two broken images never stop it.

    Raises:
        ValueError: `max_broken_share` is out of range.
    """

    max_broken_share: float = 0.01
    min_seen: int = 200
    _counts: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"`max_broken_share` must be between 0 and 1, got {self.max_broken_share!r}.")
        # One row (seen, broken) per worker, so that no two processes write to the same number.
        self._counts = torch.zeros((_MAX_WORKERS + 1, 2), dtype=torch.int64).share_memory_()

    @property
    def seen(self) -> int:
        """Number of images so far, including broken ones."""
        return int(self._counts[:, 0].sum())

    @property
    def broken(self) -> int:
        """Number of images dropped so far."""
        return int(self._counts[:, 1].sum())

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            rows: Rows of a dataset made by `transform_images`.

        Returns:
            {"pixel_values": (B, 3, H, W) float32}, or {"pixels": (B, 3, H, W) uint8} where the device normalises, and,
            where the rows have labels, {"labels": (B,) int64}; B is smaller than the number of rows if some images
            were broken. Rows of a cache of features add theirs.

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
        if "pixels" in rows[0]:
            batch = {"pixels": _stack([row["pixels"] for row in rows])}
        else:
            batch = {"pixel_values": _stack([row["pixel_values"] for row in rows]).float()}
        further = [name for name in _FURTHER if all(name in row for row in rows)]
        batch |= {name: torch.stack([row[name] for row in rows]) for name in further}
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
                f"{self.broken} of the {self.seen} images loaded so far are broken, more than `max_broken_share` = "
                f"{self.max_broken_share:g} allows; the last one: {errors[-1]}. Repair or remove them."
            )


def _stack(images: list[torch.Tensor]) -> torch.Tensor:
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(f"`transform` must give all images one shape, got {shapes}; end it with a crop.")
    return stack_pixels(images)


def _stack_labels(labels: list[int], num_rows: int) -> torch.Tensor:
    if len(labels) < num_rows:
        raise ValueError(f"`labels` must be given for all images or none, got {len(labels)} for {num_rows} images.")
    return torch.tensor(labels, dtype=torch.int64)
