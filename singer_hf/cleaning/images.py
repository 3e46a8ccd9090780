"""Images of a cleaning: those that are trained on, and a sample of them for the audits."""

from dataclasses import dataclass
from typing import Any

import datasets
from torch import Tensor, nn

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_dataset import has_pixel_values

# With fewer patches a share of outliers that counts as artifacts may not be seen at all.
_MIN_PATCHES = 4_000


@dataclass(frozen=True)
class CleaningInputs:
    """What a cleaning starts from.

    Attributes:
        teacher: The teacher, on its device.
        name: Its name in tables.
        dataset: The images that are trained on.
        processor: Image processor of the teacher, or None.
        batches: The images of both audits, (B, 3, H, W).
    """

    teacher: nn.Module
    name: str
    dataset: Any
    processor: Any
    batches: list[Tensor]


def load_training_images(images: Any, split: str, image_column: str | None, max_samples: int | None, seed: int) -> Any:
    """Loads the images by folder or Hub id, or draws a sample of a dataset.

    Args:
        images: A folder, a Hub id, or a dataset.
        split: Split of a folder or Hub id.
        image_column: Column with the images. None: the only image column.
        max_samples: At most this many images.
        seed: Seed of the sample.

    Raises:
        ValueError: If a sample of something else than a folder, Hub id or dataset of images is asked for.
    """
    if isinstance(images, str):
        options = {"split": split, "image_column": image_column, "max_samples": max_samples, "seed": seed}
        return load_image_dataset(images, **options)
    if not is_of_images(images):
        if max_samples is not None:
            raise ValueError(f"`max_samples` must be left out for a dataset of pixel values, got {max_samples!r}")
        return images
    dataset = select_image_and_label(images, image_column=image_column)
    return dataset if max_samples is None else dataset.shuffle(seed).select(range(min(max_samples, len(dataset))))


def is_of_images(images: Any) -> bool:
    """Whether a dataset is one of the `datasets` library with images that are still to be transformed."""
    return isinstance(images, datasets.Dataset | datasets.IterableDataset) and not has_pixel_values(images)


def check_number(batches: list[Tensor], num_patches: int) -> None:
    """Checks that there are images enough to find outliers and to estimate the thresholds of the gates.

    Args:
        batches: The images of the audit, (B, 3, H, W).
        num_patches: Patches of an image.

    Raises:
        ValueError: If there are too few.
    """
    number, needed = sum(map(len, batches)), -(-_MIN_PATCHES // num_patches)
    if number < needed:
        raise ValueError(
            f"`images` must hold at least {needed} images of {num_patches} patches ({_MIN_PATCHES:,} patches) to "
            f"estimate which norms are outliers, got {number}; give more images"
        )
