"""Image datasets by Hub id or local folder: files, split, columns and subset."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetBuilder, IterableDataset, load_dataset_builder, load_from_disk
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from singer_hf.data.columns import select_image_and_label

_IMAGE_BUILDERS = (ImageFolder, Parquet, Arrow, WebDataset)
_IMAGE_SUFFIXES = set(ImageFolder.EXTENSIONS)
# A saved dataset is streamed in this many shards, so that as many workers can share it.
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
    """Load the images of one split, and their labels where there are any.

    Args:
        dataset_name: A local folder (images in class folders or flat, parquet or arrow files, or one written by
            `save_to_disk`), a local parquet or arrow file, or the id of a dataset on the Hub. A path that exists is
            never looked up on the Hub.
        split: Name of the split; without streaming also a slice such as "train[:10%]".
        config_name: Name of the dataset's configuration, if it has several.
        image_column: Column with the images. If None, it is detected (see `select_image_and_label`).
        label_column: Column with the class indices. If None, it is detected; a dataset without labels is accepted.
        streaming: Iterate over the rows instead of preparing the dataset on disk.
        max_samples: Keep at most this many images (at least 1), drawn by `seed`; a smaller subset is part of a larger
            one. When streaming, the seed draws the order of the shards, and their first rows are taken.
        shuffle_buffer: Streaming only: shuffle within a buffer of this many undecoded images per worker, anew
            each epoch.
        seed: Seed of the subset and of the streaming shuffle.
        revision: Commit, branch or tag on the Hub.

    Returns:
        A dataset with the column "image", not decoded ({"bytes", "path"}), and "label" where there are labels.

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
    dataset = load_split(str(dataset_name), split, config_name, streaming, revision)
    dataset = select_image_and_label(dataset, image_column=image_column, label_column=label_column)
    if not next(iter(dataset.take(1)), None):
        raise ValueError(_empty(str(dataset_name), split))
    if streaming:
        return _stream_subset(dataset, max_samples, shuffle_buffer, seed)
    return _subset(dataset, max_samples, seed)


def load_split(
    name: str, split: str, config_name: str | None, streaming: bool, revision: str | None
) -> Dataset | IterableDataset:
    """Load one split of a local or Hub dataset with all its columns.

    Args:
        name: Folder, file or Hub id.
        split: Name of the split; without streaming also a slice such as "train[:10%]".
        config_name: Name of the dataset's configuration, if it has several.
        streaming: Iterate over the rows instead of preparing the dataset on disk.
        revision: Commit, branch or tag on the Hub.

    Raises:
        FileNotFoundError: There is no such folder or dataset.
        ValueError: The folder holds no images, or the split is missing or empty.
    """
    path = Path(name).expanduser()
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _load_saved(path, split, streaming)
    builder = _local_builder(path, name, config_name) if path.exists() else _hub_builder(name, config_name, revision)
    _check_split(split, list(builder.config.data_files or builder.info.splits or ()), name, sliced=not streaming)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    if not any(builder.info.splits[part].num_examples for part in _split_parts(split)):
        raise ValueError(_empty(name, split))
    return builder.as_dataset(split=split)


def _load_saved(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    # `load_dataset` copies a saved dataset into its cache and calls a single split "train", whatever its name is.
    saved = load_from_disk(str(path))
    splits = saved if isinstance(saved, dict) else {str(saved.split or split): saved}
    _check_split(split, list(splits), str(path), sliced=False)
    dataset = splits[split]
    return dataset.to_iterable_dataset(num_shards=max(1, min(_MAX_SHARDS, len(dataset)))) if streaming else dataset


def _local_builder(path: Path, name: str, config_name: str | None) -> DatasetBuilder:
    if path.suffix in (".parquet", ".arrow") and path.is_file():
        return load_dataset_builder(path.suffix[1:], data_files=str(path))
    try:
        # Absolute: `datasets` takes a relative folder called "parquet" for its own loader of that name.
        builder = load_dataset_builder(str(path.absolute()), config_name)
    except (FileNotFoundError, ValueError):
        if config_name is not None:
            raise
        builder = None
    if isinstance(builder, _IMAGE_BUILDERS):
        return builder
    # `datasets` goes by the most common file type, which may be that of captions or annotations beside the images.
    if not any(file.suffix.lower() in _IMAGE_SUFFIXES for file in path.rglob("*")):
        raise ValueError(f"`dataset_name` must hold images, parquet or arrow files, got {name!r} with none of them.")
    return load_dataset_builder("imagefolder", data_dir=str(path))


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


def _empty(dataset_name: str, split: str) -> str:
    return f"`dataset_name` must hold images, got {dataset_name!r} with an empty split {split!r}."


def _subset(dataset: Dataset, max_samples: int | None, seed: int) -> Dataset:
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    # Sorted, so that the rows are still read in their order on disk.
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:max_samples]))


def _stream_subset(
    dataset: IterableDataset, max_samples: int | None, shuffle_buffer: int, seed: int
) -> IterableDataset:
    if max_samples is not None:
        # A buffer of one shuffles only the shards: a larger one would take different images in each epoch.
        dataset = dataset.shuffle(seed=seed, buffer_size=1).take(max_samples)
    return dataset.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else dataset
