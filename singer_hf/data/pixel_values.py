"""What a Trainer is given as a dataset, made into rows of pixel values."""

from typing import Any

import datasets

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.transforms import eval_transform, train_transform


def prepare_image_dataset(
    dataset: Any,
    processor: Any,
    *,
    train: bool,
    image_column: str | None = None,
    color_jitter: float = 0.0,
    seed: int = 0,
) -> Any:
    """Rows of ``pixel_values`` (3, H, W), decoded and transformed on the workers.

    Args:
        dataset: A dataset of the `datasets` library with images, or a dict of such; anything else, and a dataset whose
            own transform already yields ``pixel_values``, is returned as it is.
        processor: Image processor that says size and normalisation.
        train: Random crop and flip, or the processor's own deterministic steps.
        image_column: Column with the images; found by itself if None.
        color_jitter: Strength of the colour jitter in training, >= 0.
        seed: Seed of crops and flips.

    Raises:
        ValueError: If there is no image column, or no processor for it.
    """
    if isinstance(dataset, dict):
        options = {"train": train, "image_column": image_column, "color_jitter": color_jitter, "seed": seed}
        return {name: prepare_image_dataset(part, processor, **options) for name, part in dataset.items()}
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset) or _has_pixel_values(dataset):
        return dataset
    if processor is None:
        raise ValueError(
            "`processing_class` must be an image processor for a dataset of images, got None; load one with "
            "`AutoImageProcessor.from_pretrained`"
        )
    if isinstance(dataset, datasets.Dataset) and not len(dataset):
        raise ValueError("the dataset is empty: it has an image column but no rows")
    transform = train_transform(processor, color_jitter=color_jitter) if train else eval_transform(processor)
    return transform_images(select_image_and_label(dataset, image_column=image_column), transform, seed=seed)


def _has_pixel_values(dataset: Any) -> bool:
    if "pixel_values" in (dataset.column_names or ()):
        return True
    format_type = dataset.format["type"] if isinstance(dataset, datasets.Dataset) else None
    return format_type == "custom" and len(dataset) > 0 and "pixel_values" in dataset[0]
