"""Loaders of features and labels by row index: from a frozen model in every pass, or from arrays."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from singer_hf.data.batches.image_batches import to_pixel_values
from singer_hf.data.pixels import stack_pixels
from singer_hf.vit.inference import evaluation_mode

Batch = tuple[dict[str, Tensor], Tensor]
FeaturesFn = Callable[[nn.Module, Tensor], dict[str, Tensor]]


class FeatureLoader(Protocol):
    """Rows of features and labels, in any order."""

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """Draws new random crops from now on, if the loader has any."""

    def iterate(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Yields features (B, ...) and labels (B, ...) of each batch of row indices, in the given order."""


class ModelFeatureLoader:
    """Features that a model computes anew in every pass, which allows random crops.

    Args:
        model: The frozen model; it runs in evaluation mode, and every module gets its mode back.
        dataset: Rows {"pixel_values": (3, H, W), "labels": class index, mask (H, W) or depth map (H, W)}; or with
            "pixels", uint8 (3, H, W), and an attribute ``normalization`` of the dataset.
        features_fn: (model, images) -> features, such as ``FrozenFeatures()``.
        num_workers: Number of processes that load images.
        device: Device of the model; None takes that of its parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        features_fn: FeaturesFn,
        *,
        num_workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.model, self.dataset, self.features_fn = model, dataset, features_fn
        self.num_workers = num_workers
        self.device = device or next(model.parameters()).device

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the dataset, if it has random crops."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def iterate(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Yields features (B, ...) and labels (B, ...) of each batch of row indices.

        Raises:
            ValueError: If a row cannot be loaded or its mask is not of its image's size.
        """
        loader = DataLoader(
            self.dataset,
            batch_sampler=[[int(row) for row in batch] for batch in batches],
            num_workers=self.num_workers,
            collate_fn=collate_rows,
            pin_memory=torch.device(self.device).type == "cuda",
        )
        for images, labels in loader:
            with evaluation_mode(self.model):  # not around the yield: the caller trains its heads there
                features = self.features_fn(self.model, self.to_pixel_values(images))
            yield features, labels

    def to_pixel_values(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the rows hold them -> pixel values (B, 3, H, W) on the device of the model."""
        return to_pixel_values(images, getattr(self.dataset, "normalization", None), self.device)


class ArrayFeatureLoader:
    """Features that exist already: tensors, arrays or memory-mapped files.

    Args:
        features: Name -> array (N, ...).
        labels: Class indices (N,), masks or depth maps (N, H, W).

    Raises:
        ValueError: If the arrays differ in their number of rows.
    """

    def __init__(self, features: dict[str, np.ndarray | Tensor], labels: np.ndarray | Tensor) -> None:
        for name, array in features.items():
            if len(array) != len(labels):
                raise ValueError(f"`features[{name!r}]` must have {len(labels)} rows as the labels, got {len(array)}")
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: stored features are the same in every epoch."""

    def iterate(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Yields features (B, ...) and labels (B, ...) of each batch of row indices."""
        for batch in batches:
            rows = np.asarray(batch)
            features = {name: _rows(array, rows).float() for name, array in self.features.items()}
            yield features, _rows(self.labels, rows)


def collate_rows(rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Stacks rows into images (B, 3, H, W), normalised or of 8 bits as the rows are, and labels (B, ...).

    Raises:
        ValueError: If a row could not be loaded, has no labels or a mask of another size than its image.
    """
    key = "pixels" if "pixels" in rows[0] else "pixel_values"
    for row in rows:
        if "error" in row:
            raise ValueError(f"the labelled set must hold readable images only, got {row['error']}")
        if "labels" not in row:
            raise ValueError(f'a labelled row must have "pixel_values" and "labels", got {sorted(row)}')
        size, labels = tuple(row[key].shape[-2:]), torch.as_tensor(row["labels"])
        if labels.ndim == 2 and tuple(labels.shape) != size:
            raise ValueError(
                f"a mask must be of the size of its image (height, width) {size}, got {tuple(labels.shape)}; resize "
                "and crop both alike"
            )
    labels = torch.stack([torch.as_tensor(row["labels"]) for row in rows])
    return stack_pixels([row[key] for row in rows]), labels


def in_order(num_rows: int, batch_size: int) -> list[range]:
    """All row indices in order, in batches."""
    return [range(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]


def _rows(array: np.ndarray | Tensor, rows: np.ndarray) -> Tensor:
    return array[torch.from_numpy(rows)] if isinstance(array, Tensor) else torch.from_numpy(np.asarray(array[rows]))
