"""Batches of images: of a dataset, as the loader of the training makes them, or of given pixel values."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from singer_hf.data.batches.given_images import take
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import prepare_image_dataset, transform_images
from singer_hf.data.image_processors import ImageSpec
from singer_hf.data.pixels import PixelNormalization, stack_pixels

_BATCH = 16


class ImageBatches:
    """Batches of pixel values (B, 3, H, W) of the readable images of a dataset; unreadable ones are left out.

    Where the transform works on pixels of 8 bits, the workers send these, and the device normalises them.

    Args:
        rows: Dataset with the undecoded column "image".
        transform: PIL image -> tensor (3, H, W), or a transform of 8-bit pixels such as `eval_transform(processor)`.
        batch_size: Images per batch.
        spec: Size and normalisation of the images, for figures.
        num_workers: Processes that load images.
        device: Device of the batches.

    Attributes:
        spec: See above.
        unreadable: Names and errors of the unreadable images, once all batches have been iterated over.
    """

    def __init__(
        self,
        rows: Dataset,
        transform: Callable,
        batch_size: int,
        *,
        spec: ImageSpec | None = None,
        num_workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.spec, self.unreadable = spec, []
        self._rows = transform_images(rows, transform, normalize=False)
        self._device = torch.device(device or "cpu")
        self._places: list[int] = []
        self._loader = DataLoader(
            self._rows,
            batch_size,
            num_workers=num_workers,
            collate_fn=_collate_readable,
            pin_memory=self._device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Tensor]:
        for _, pixel_values in self.with_places():
            yield pixel_values

    def with_places(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the places of readable images in the dataset, and their pixel values (B, 3, H, W)."""
        found, unreadable, start = [], [], 0
        for readable, images, errors in self._loader:
            places = [start + index for index in readable]
            found += places
            unreadable += errors
            start += len(readable) + len(errors)
            if places:
                yield places, to_pixel_values(images, self._rows.normalization, self._device)
        self._places, self.unreadable = found, unreadable  # not those of a part of the images

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
        images = _collate_readable([self._rows[self._places[index]] for index in indices])[1]
        return to_pixel_values(images, self._rows.normalization, self._device)

    def list_unreadable(self, limit: int = 5) -> str:
        """Returns the first unreadable images with their errors as one text."""
        return "; ".join(self.unreadable[:limit])


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
        self.batches, self.unreadable = batches, []

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


def load_batches(
    dataset: Any,
    processor: Any,
    number: int | None = None,
    *,
    seed: int | None = None,
    batch_size: int = _BATCH,
    device: torch.device | None = None,
) -> list[Tensor]:
    """Loads images into memory without random crops: batches of pixel values (B, 3, H, W).

    Few broken images are left out, more stop it, as in training (see `ImageCollator`).

    Args:
        dataset: Images, or rows of ``pixel_values``, see `prepare_image_dataset`.
        processor: Image processor, which images need.
        number: Number of images; None takes all.
        seed: Seed of a random choice; None takes the first images, as streams do always.
        batch_size: Images per batch.
        device: Device of the batches.

    Raises:
        ValueError: There is no image column, the dataset is empty, or there is no processor.
        RuntimeError: Too many images are broken.
    """
    rows = prepare_image_dataset(dataset, processor, train=False, normalize=False)
    normalization = getattr(rows, "normalization", None)
    if hasattr(rows, "__len__"):
        rows = Subset(rows, _choose(len(rows), len(rows) if number is None else number, seed))
    loader = DataLoader(rows, batch_size, collate_fn=ImageCollator())
    batches = (batch["pixels" if "pixels" in batch else "pixel_values"] for batch in loader)
    batches = batches if number is None else take(batches, number)
    return [to_pixel_values(images, normalization, device) for images in batches]


def to_pixel_values(
    images: Tensor, normalization: PixelNormalization | None, device: torch.device | None = None
) -> Tensor:
    """Moves images of a loader to a device and normalises them there: pixel values (B, 3, H, W).

    Args:
        images: Pixel values (B, 3, H, W), or uint8 (B, 3, H, W) for ``normalization``.
        normalization: Of pixels of 8 bits; None for pixel values.
        device: The device; None leaves them where they are.
    """
    moved = images if device is None else images.to(device, non_blocking=True)
    return moved if normalization is None else normalization(moved)


def _choose(total: int, number: int, seed: int | None) -> list[int]:
    if seed is None:
        return list(range(min(number, total)))
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:number].tolist()


def _collate_readable(rows: list[dict]) -> tuple[list[int], Tensor | None, list[str]]:
    """Places of the readable rows, their images (B, 3, H, W), and the errors of the others."""
    readable = [place for place, row in enumerate(rows) if "error" not in row]
    images = [rows[place]["pixels" if "pixels" in rows[place] else "pixel_values"] for place in readable]
    return readable, stack_pixels(images) if images else None, [row["error"] for row in rows if "error" in row]
