"""Image datasets by Hub id or local folder: which files, which split, which columns, which subset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetBuilder, IterableDataset, Value, load_dataset_builder, load_from_disk
from datasets import Image as ImageFeature
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

_ENCODED_DTYPES = {"binary", "large_binary", "string", "large_string"}
_TABLE_SUFFIXES = {".parquet", ".arrow", ".tar", ".zip"}
_IMAGE_SUFFIXES = set(ImageFolder.EXTENSIONS)
# A streaming copy of a saved dataset is cut into this many pieces, so that as many workers can share it.
_MAX_SHARDS = 64


def load_image_dataset(
    dataset_name: str | os.PathLike,
    *,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
    shuffle_buffer: int = 0,
    seed: int = 0,
    revision: str | None = None,
) -> Dataset | IterableDataset:
    """Load the images (and, where there are any, the labels) of one split.

    Args:
        dataset_name: A local folder (images in class folders or flat, parquet or arrow files, or one written by
            `save_to_disk`), a local parquet or arrow file, or the id of a dataset on the Hub. What exists on disk is
            never looked up on the network.
        split: Name of the split; without streaming also a slice such as "train[:10%]".
        config_name: Name of the dataset's configuration, if it has several.
        image_column: Column with the images; found by itself if None (see `select_image_columns`).
        label_column: Column with the class indices; found by itself if None, and optional.
        streaming: Read rows one after the other instead of preparing the dataset on disk.
        max_samples: Keep at most this many images, drawn by `seed`; a smaller set is part of a larger one. When
            streaming, the seed draws the order of the shards, and their first rows are taken.
        shuffle_buffer: Streaming only: shuffle within a buffer of this many undecoded images per worker, anew
            each epoch.
        seed: Seed of the subset and of the streaming shuffle.
        revision: Commit, branch or tag on the Hub.

    Returns:
        A dataset with the column "image", not yet decoded ({"bytes", "path"}), and "label" where there are labels.

    Raises:
        FileNotFoundError: There is no such folder or dataset.
        ValueError: The folder holds no images, the split or a column is missing, or the split is empty.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples` must be at least 1, got {max_samples!r}; leave it out for all images.")
    if shuffle_buffer and not streaming:
        raise ValueError(
            f"`shuffle_buffer` must be 0 without `streaming`, got {shuffle_buffer!r}; the sampler shuffles."
        )
    dataset = read_split(str(dataset_name), split, config_name, streaming, revision)
    dataset = select_image_columns(dataset, image_column=image_column, label_column=label_column)
    if not next(iter(dataset.take(1)), None):
        raise _empty(str(dataset_name), split)
    if streaming:
        return _stream_subset(dataset, max_samples, shuffle_buffer, seed)
    return _subset(dataset, max_samples, seed)


def select_image_columns(
    dataset: Dataset | IterableDataset, *, image_column: str | None = None, label_column: str | None = None
) -> Dataset | IterableDataset:
    """Keep the images as "image" (undecoded) and the labels, if any, as "label".

    Args:
        dataset: Any dataset of the `datasets` library, loaded or made in the process.
        image_column: Column to use. If None: the only one of type Image (or a struct of bytes and path), or among
            several the one called "image". A named column may also hold encoded bytes or file paths.
        label_column: Column to use. If None: "label", "labels", or else the only ClassLabel column; no labels is fine.

    Returns:
        The dataset with one or two columns. Decoding is left to the workers, which can skip a broken image.

    Raises:
        ValueError: A named column is missing or of the wrong type, or the image column cannot be found.
    """
    if dataset.features is None:
        raise ValueError(
            "`dataset` must know its column types, which this stream does not; load it without `streaming`."
        )
    image_column = _find_image_column(dataset.features, image_column)
    label_column = _find_label_column(dataset.features, label_column)
    wanted = {image_column: "image"} | ({label_column: "label"} if label_column else {})
    dataset = dataset.with_format(None).select_columns(list(wanted))
    dataset = dataset.rename_columns({old: new for old, new in wanted.items() if old != new})
    return dataset.cast_column("image", ImageFeature(decode=False))


def read_split(
    name: str, split: str, config_name: str | None, streaming: bool, revision: str | None
) -> Dataset | IterableDataset:
    """One split as it lies on disk or on the Hub, with all its columns; arguments as in :func:`load_image_dataset`."""
    path = Path(name).expanduser()
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _read_saved(path, split, streaming)
    builder = _local_builder(path, name, config_name) if path.exists() else _hub_builder(name, config_name, revision)
    _check_split(split, list(builder.config.data_files or builder.info.splits or ()), name, sliced=not streaming)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    if not any(builder.info.splits[part].num_examples for part in _split_parts(split)):
        raise _empty(name, split)
    return builder.as_dataset(split=split)


def _read_saved(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    saved = load_from_disk(str(path))
    splits = saved if isinstance(saved, dict) else {str(saved.split or split): saved}
    _check_split(split, list(splits), str(path), sliced=False)
    dataset = splits[split]
    return dataset.to_iterable_dataset(num_shards=max(1, min(_MAX_SHARDS, len(dataset)))) if streaming else dataset


def _local_builder(path: Path, name: str, config_name: str | None) -> DatasetBuilder:
    if path.is_file() and path.suffix in (".parquet", ".arrow"):
        return load_dataset_builder(path.suffix[1:], data_files=str(path))
    kind = _kind_of_folder(path)
    if kind is None:
        raise ValueError(f"`dataset_name` must hold images, parquet or arrow files, got {name!r} with none of them.")
    if kind == "images" and config_name is None:
        return load_dataset_builder("imagefolder", data_dir=str(path))
    return load_dataset_builder(str(path), config_name)


def _kind_of_folder(path: Path) -> str | None:
    """Say "tables" or "images" by the first such file; a metadata.parquet beside images describes them."""
    for _, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        suffixes = {Path(file).suffix.lower() for file in files if Path(file).stem != "metadata"}
        if suffixes & _TABLE_SUFFIXES:
            return "tables"
        if suffixes & _IMAGE_SUFFIXES:
            return "images"
    return None


def _hub_builder(name: str, config_name: str | None, revision: str | None) -> DatasetBuilder:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(
            f"`dataset_name` must be an existing folder or a Hub id, got {name!r}: no such folder."
        )
    try:
        return load_dataset_builder(name, config_name, revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"`dataset_name` must be an existing folder or a Hub id, got {name!r}: {error}. Check the spelling and "
            "the network; a gated dataset needs `hf auth login`."
        ) from error


def _check_split(split: str, names: list, dataset_name: str, *, sliced: bool) -> None:
    names = [str(name) for name in names]
    if missing := [part for part in (_split_parts(split) if sliced else [split]) if part not in names]:
        raise ValueError(f"`split` must be one of {names} of {dataset_name!r}, got {missing[0]!r}.")


def _split_parts(split: str) -> list[str]:
    """Names in a split such as "train[:10%]+test"."""
    return [part.split("[")[0].strip() for part in split.split("+")]


def _empty(dataset_name: str, split: str) -> ValueError:
    return ValueError(f"`dataset_name` must hold images, got {dataset_name!r} with an empty split {split!r}.")


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
            f"`dataset` must have a column of images, got the columns {columns}; name it by `image_column`."
        )
    if len(found) > 1 and "image" not in found:
        raise ValueError(f"`image_column` must say which of the image columns {found} to use, got None.")
    return "image" if "image" in found else found[0]


def _is_image(feature: Any) -> bool:
    # Parquet files written without `datasets` hold images as a plain struct.
    return isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _find_label_column(features: dict, named: str | None) -> str | None:
    if named is None:
        class_columns = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
        candidates = [
            *(name for name in ("label", "labels") if name in features),
            *class_columns[: len(class_columns) == 1],
        ]
        return next((column for column in candidates if _is_class_index(features[column])), None)
    if named not in features:
        raise ValueError(f"`label_column` must be one of {list(features)}, got {named!r}.")
    if not _is_class_index(features[named]):
        raise ValueError(
            f"`label_column` must hold class indices, got {named!r} of type {features[named]}; for names use "
            "`dataset.class_encode_column`."
        )
    return named


def _is_class_index(feature: Any) -> bool:
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype)


def _subset(dataset: Dataset, max_samples: int | None, seed: int) -> Dataset:
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    # Sorted, so that reading in order stays reading in order on disk.
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:max_samples]))


def _stream_subset(
    dataset: IterableDataset, max_samples: int | None, shuffle_buffer: int, seed: int
) -> IterableDataset:
    if max_samples is not None:
        # A buffer of one shuffles the shards only: a larger one would take other images each epoch.
        dataset = dataset.shuffle(seed=seed, buffer_size=1).take(max_samples)
    return dataset.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else dataset
