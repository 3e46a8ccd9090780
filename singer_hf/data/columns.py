"""Image and label columns of a dataset: which they are, and a dataset of only these two."""

from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value
from datasets import Image as ImageFeature

_ENCODED_DTYPES = {"binary", "large_binary", "string", "large_string"}


def select_image_and_label(
    dataset: Dataset | IterableDataset, *, image_column: str | None = None, label_column: str | None = None
) -> Dataset | IterableDataset:
    """Keep the images as column "image", not decoded, and the labels, if there are any, as column "label".

    Args:
        dataset: Any dataset of the `datasets` library, loaded or created in memory.
        image_column: Column with the images. If None: the only column of type Image (or struct of bytes and path), or
            the one called "image" among several. A named column may also hold encoded bytes or file paths.
        label_column: Column with the class indices. If None: "label", "labels", or else the only ClassLabel column; a
            dataset without labels is accepted.

    Returns:
        The dataset with one or two columns. The images are decoded later on the workers, which can skip a broken one.

    Raises:
        ValueError: A named column is missing or of the wrong type, or there is no (unique) image column.
    """
    if dataset.features is None:
        raise ValueError(
            "`dataset` must have known column types, got a stream without them; load it without `streaming`."
        )
    image_column = _find_image_column(dataset.features, image_column)
    label_column = _find_label_column(dataset.features, label_column)
    new_names = {image_column: "image"} | ({label_column: "label"} if label_column else {})
    dataset = dataset.with_format(None).select_columns(list(new_names))
    dataset = dataset.rename_columns({old: new for old, new in new_names.items() if old != new})
    return dataset.cast_column("image", ImageFeature(decode=False))


def _find_image_column(features: dict, named: str | None) -> str:
    columns = list(features)
    if named is not None:
        if named not in columns:
            raise ValueError(f"`image_column` must be one of {columns}, got {named!r}.")
        if not (_is_image(features[named]) or getattr(features[named], "dtype", None) in _ENCODED_DTYPES):
            raise ValueError(f"`image_column` must hold images, got {named!r} of type {features[named]}.")
        return named
    found = [column for column in columns if _is_image(features[column])]
    if not found:
        raise ValueError(
            f"`dataset` must have a column of images, got the columns {columns}; name it with `image_column`."
        )
    if len(found) > 1 and "image" not in found:
        raise ValueError(f"`image_column` must be one of the image columns {found}, got None.")
    return "image" if "image" in found else found[0]


def _is_image(feature: Any) -> bool:
    # Parquet files written without `datasets` store images as a plain struct.
    return isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _find_label_column(features: dict, named: str | None) -> str | None:
    if named is None:
        class_columns = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
        candidates = [name for name in ("label", "labels") if name in features]
        candidates += class_columns if len(class_columns) == 1 else []
        return next((column for column in candidates if _is_class_index(features[column])), None)
    if named not in features:
        raise ValueError(f"`label_column` must be one of {list(features)}, got {named!r}.")
    if not _is_class_index(features[named]):
        raise ValueError(
            f"`label_column` must hold class indices, got {named!r} of type {features[named]}; convert class names "
            "with `dataset.class_encode_column`."
        )
    return named


def _is_class_index(feature: Any) -> bool:
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype)
