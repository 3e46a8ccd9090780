"""Images of an audit: any form of images, as batches that suit each model."""

import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor

from singer_hf.cards.privacy import without_paths
from singer_hf.data.batches.given_images import check_images, image_rows, iterate_pixels, take
from singer_hf.data.batches.image_batches import ImageBatches, PixelBatches
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_dataset import has_pixel_values
from singer_hf.data.image_processors import find_image_processor, image_spec
from singer_hf.data.transforms import eval_transform
from singer_hf.inspection.inputs import AuditOptions
from singer_hf.inspection.models import NamedModel


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
    rows = image_rows(images, options.image_column)
    if rows is not None:
        if len(rows) > options.max_samples:
            rows = rows.shuffle(options.seed).select(range(options.max_samples))
        found = rows
    else:
        check_images(images)
        # Kept in memory, so that all models see the same.
        found = list(take(iterate_pixels(images, options.batch_size), options.max_samples))
    if not len(found):
        raise ValueError("`images` must hold at least one image, got none")
    return found


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
    processor = find_image_processor(options.processor, model.path)
    if processor is None:
        raise ValueError(
            f"`processor` (`--processor_name_or_path`) must be given: the model {model.label!r} has no image processor"
        )
    spec, transform = image_spec(processor), eval_transform(processor, options.image_size)
    device = next(model.model.parameters()).device
    return ImageBatches(rows, transform, options.batch_size, spec=spec, num_workers=options.num_workers, device=device)


def name_of_source(images: Any, options: AuditOptions) -> str:
    """Returns the name of the images in reports: a dataset without its path, and the seed of the sample.

    Args:
        images: As given by the user.
        options: For the seed.
    """
    if isinstance(images, str | os.PathLike):
        return f"{Path(without_paths(os.fspath(images))).name}, seed {options.seed}"
    if isinstance(images, Dataset) and not has_pixel_values(images):
        return f"{images.info.dataset_name or 'a dataset'}, seed {options.seed}"
    return "the given images"
