"""Training images of which only the crops of the first epochs are used, with the tokens that are cached of them."""

from collections.abc import Callable
from typing import Any

import datasets
import torch

from singer_hf.data.image_dataset import ImageDataset
from singer_hf.training.cache.feature_store import FeatureStore


class CachedRows(ImageDataset):
    """Rows of images with ``cached_row``, their number in the cache, and ``teacher_tokens`` where they are complete.

    Epoch e has the crops of epoch e mod K. The loader's workers read the tokens.

    Args:
        dataset: See :class:`singer_hf.data.image_dataset.ImageDataset`.
        transform: Likewise.
        seed: Likewise.
        normalize: Likewise.
        store: The cache. None: the rows are those of an `ImageDataset`.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: Callable,
        seed: int,
        normalize: bool = True,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(dataset, transform, seed, normalize)
        self.store = store

    def set_epoch(self, epoch: int) -> None:
        """Changes the random crops, see the base class."""
        super().set_epoch(epoch if self.store is None else epoch % self.store.num_crops)

    def _load(self, index: int, row: dict[str, Any]) -> dict[str, Any]:
        values = super()._load(index, row)
        if self.store is None or "error" in values:
            return values
        number = int(self._epoch) * len(self) + index
        tokens = self.store.read(number)
        known = {} if tokens is None else {"teacher_tokens": torch.from_numpy(tokens)}
        return values | {"cached_row": torch.tensor(number)} | known
