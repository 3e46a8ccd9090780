"""A dataset with columns of features, written batch by batch to one Arrow file."""

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from datasets import Array2D, Array3D, Dataset, Features
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from tqdm.auto import tqdm

from singer_hf.data.batches.image_batches import ImageBatches
from singer_hf.data.columns import select_image_and_label


@dataclass
class FeatureDatasetWriter:
    """Adds the features of a dataset's images to its rows, in constant memory.

    The result is a new Arrow file with a name of its own: the cache of ``datasets``, which would have to recognise
    the model, is not asked. Rows with unreadable images are left out.

    Attributes:
        compute: Images (B, 3, H, W) -> block index -> features (B, ...) on the CPU.
        prefix: Columns are called ``<prefix>_<block>``.
        folder: Folder of the file.
        batch_size: Images per forward pass and per record batch.
        num_workers: Processes that load images.
        device: Device of the model.
        progress: Whether to show a progress bar.
    """

    compute: Callable[[Tensor], dict[int, Tensor]]
    prefix: str
    folder: Path
    batch_size: int
    num_workers: int
    device: torch.device
    progress: bool

    def __call__(self, dataset: Dataset, transform: Callable, image_column: str | None) -> Dataset:
        """Writes the rows of ``dataset`` with their features.

        Args:
            dataset: The dataset; its format is not that of the result, which has none.
            transform: PIL image -> tensor (3, H, W).
            image_column: Column with the images, or None.

        Raises:
            ValueError: If there are no images, none can be read, a column exists already, or the disk is too small.
        """
        if not len(dataset):
            raise ValueError("`images` must hold at least one image, got a dataset without rows")
        rows = select_image_and_label(dataset, image_column=image_column)
        place = {"num_workers": self.num_workers, "device": self.device}
        images = ImageBatches(rows, transform, self.batch_size, **place)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{uuid.uuid4().hex}.arrow"
        partial = file.with_suffix(".partial")
        try:
            self._write(dataset.with_format("arrow"), images, partial)
            partial.rename(file)
        finally:
            partial.unlink(missing_ok=True)
        _warn(images, len(dataset))
        return Dataset.from_file(str(file), split=dataset.split)

    def _write(self, table: Dataset, images: ImageBatches, file: Path) -> None:
        writer = None
        try:
            for kept, pixel_values in self._with_bar(images, len(table)):
                arrays = self._columns(self.compute(pixel_values), table.column_names)
                if writer is None:
                    _check_disk(arrays, len(table), self.folder)
                    features = Features({**table.features, **{name: _feature(a) for name, a in arrays.items()}})
                    writer = ArrowWriter(path=str(file), features=features)
                rows = table[kept]
                arrays = {name: array.numpy() for name, array in arrays.items()}
                writer.write_batch({**{name: rows[name] for name in rows.column_names}, **arrays})
            if writer is None:
                raise ValueError(f"none of the {len(table)} images can be read: {images.list_unreadable()}")
            writer.finalize()
        finally:
            if writer is not None:
                writer.stream.close()

    def _with_bar(self, images: ImageBatches, num_rows: int) -> Iterator[tuple[list[int], Tensor]]:
        with tqdm(desc="features", total=num_rows, unit="image", disable=not self.progress) as bar:
            for kept, pixel_values in images.with_places():
                yield kept, pixel_values
                bar.update(kept[-1] + 1 - bar.n)
            bar.update(num_rows - bar.n)

    def _columns(self, features: dict[int, Tensor], taken: list[str]) -> dict[str, Tensor]:
        columns = {f"{self.prefix}_{index}": tensor for index, tensor in features.items()}
        if doubled := [name for name in columns if name in taken]:
            raise ValueError(
                f"`column_prefix` must give columns that the dataset does not have, got {doubled[0]!r}; choose "
                "another one"
            )
        return columns


def feature_folder(folder: str | os.PathLike | None) -> Path:
    """The folder that was given, or one in the cache of ``datasets``."""
    if folder is None:
        return Path(datasets.config.HF_DATASETS_CACHE) / "singer_hf_features"
    return Path(folder).expanduser()


def _warn(images: ImageBatches, num_rows: int) -> None:
    if images.unreadable:
        count = f"{len(images.unreadable)} of the {num_rows} images cannot be read"
        warnings.warn(f"{count}, their rows are left out: {images.list_unreadable()}", stacklevel=4)


def _feature(array: Tensor) -> Array2D | Array3D:
    shape, dtype = tuple(array.shape[1:]), str(array.dtype).removeprefix("torch.")
    return (Array3D if len(shape) == 3 else Array2D)(shape=shape, dtype=dtype)


def _check_disk(arrays: dict[str, Tensor], num_rows: int, folder: Path) -> None:
    needed = sum(array[0].numel() * array.element_size() for array in arrays.values()) * num_rows / 2**30
    free = shutil.disk_usage(folder).free / 2**30
    if needed > free:
        raise ValueError(
            f"`cache_dir` must have {needed:.3g} GiB free for the features of {num_rows} images, got {str(folder)!r} "
            f"with {free:.3g} GiB; choose another folder, `dtype='float16'`, or fewer `layers`"
        )
