"""The images on which artifacts are measured at every log: the same in the whole run."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import ImageDataset, IterableImageDataset
from singer_hf.data.transforms import eval_transform


class ArtifactImages(TrainerCallback):
    """Draws training images by the seed when the training begins, and keeps them: center views without augmentation.

    A resumed run and every process of a run draw the same. Rows of a dataset of the user's own are taken as they are.
    A stream of the user's own is not touched: the images are those of the last batch before the first log.

    Args:
        dataset: The prepared training dataset.
        processor: The student's image processor.
        collator: Makes a batch of rows of the user's own.
        number: Number of images; 0 draws none.
        seed: Seed of the choice.

    Attributes:
        pixel_values: The images (number, 3, H, W), normalised for the student; None before there are some.
    """

    def __init__(self, dataset: Any, processor: Any, collator: Any, number: int, seed: int) -> None:
        self.dataset, self.processor, self.collator = dataset, processor, collator
        self.number, self.seed = number, seed
        self.pixel_values: Tensor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Draws the images, before any epoch has changed the order of a stream."""
        if self.number and self.pixel_values is None:
            self.pixel_values = self._draw()

    def on(self, device: torch.device, batch: Tensor | None) -> Tensor | None:
        """Returns the images (number, 3, H, W) on a device; None where there are none to measure.

        Args:
            device: The device.
            batch: Images that are kept instead if there is no selection, (B, 3, H, W).
        """
        if self.number and self.pixel_values is None and batch is not None:
            self.pixel_values = batch[: self.number].clone()
        self.pixel_values = None if self.pixel_values is None else self.pixel_values.to(device)
        return self.pixel_values

    def _draw(self) -> Tensor | None:
        if isinstance(self.dataset, ImageDataset | IterableImageDataset):
            rows = type(self.dataset)(self.dataset.dataset, eval_transform(self.processor), self.seed)
            good = (row for row in self._in_order(rows) if "error" not in row)
            return ImageCollator()(list(islice(good, self.number)))["pixel_values"]
        if isinstance(self.dataset, torch.utils.data.IterableDataset) or not hasattr(self.dataset, "__len__"):
            return None
        with _own_random_numbers():
            rows = list(islice(self._in_order(self.dataset), self.number))
        return self.collator(rows)["pixel_values"]

    def _in_order(self, rows: Any) -> Iterator[Any]:
        if isinstance(rows, IterableImageDataset):
            return iter(rows)
        order = np.random.default_rng(self.seed).permutation(len(rows))
        return (rows[int(index)] for index in order)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """A context whose random numbers, of rows that augment themselves, do not change those of the training."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
