"""A dataset with columns of features, written batch by batch to one Arrow file."""

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from datasets import Array2D, Array3D, Dataset, Features
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.image_dataset import transform_images

_NAMED_IMAGES = 5


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
        progress: Whether to show a progress bar.
        unreadable: Unreadable images so far, the first ones by their errors.
    """

    compute: Callable[[Tensor], dict[int, Tensor]]
    prefix: str
    folder: Path
    batch_size: int
    num_workers: int
    progress: bool
    unreadable: list[str | None] = field(default_factory=list)

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
        rows = transform_images(select_image_and_label(dataset, image_column=image_column), transform)
        loader = DataLoader(rows, self.batch_size, num_workers=self.num_workers, collate_fn=_collate)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{uuid.uuid4().hex}.arrow"
        partial = file.with_suffix(".partial")
        try:
            self._write(dataset.with_format("arrow"), loader, partial)
            partial.rename(file)
        finally:
            partial.unlink(missing_ok=True)
        self._warn(len(dataset))
        return Dataset.from_file(str(file), split=dataset.split)

    def _write(self, table: Dataset, loader: DataLoader, file: Path) -> None:
        writer = None
        try:
            for kept, pixel_values in self._readable(loader, len(table)):
                arrays = self._columns(self.compute(pixel_values), table.column_names)
                if writer is None:
                    _check_disk(arrays, len(table), self.folder)
                    features = Features({**table.features, **{name: _feature(a) for name, a in arrays.items()}})
                    writer = ArrowWriter(path=str(file), features=features)
                rows = table[kept]
                arrays = {name: array.numpy() for name, array in arrays.items()}
                writer.write_batch({**{name: rows[name] for name in rows.column_names}, **arrays})
            if writer is None:
                raise ValueError(f"none of the {len(table)} images can be read: {self._named()}")
            writer.finalize()
        finally:
            if writer is not None:
                writer.stream.close()

    def _readable(self, loader: DataLoader, num_rows: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yields (row indices, pixel values (B, 3, H, W)) of the readable images of each batch."""
        start = 0
        with tqdm(desc="features", total=num_rows, unit="image", disable=not self.progress) as bar:
            for pixel_values, errors in loader:
                for error in filter(None, errors):
                    self.unreadable.append(error if len(self.unreadable) < _NAMED_IMAGES else None)
                if pixel_values is not None:
                    yield [start + offset for offset, error in enumerate(errors) if error is None], pixel_values
                start += len(errors)
                bar.update(len(errors))

    def _columns(self, features: dict[int, Tensor], taken: list[str]) -> dict[str, Tensor]:
        columns = {f"{self.prefix}_{index}": tensor for index, tensor in features.items()}
        if doubled := [name for name in columns if name in taken]:
            raise ValueError(
                f"`column_prefix` must give columns that the dataset does not have, got {doubled[0]!r}; choose "
                "another one"
            )
        return columns

    def _named(self) -> str:
        return "; ".join(error for error in self.unreadable if error is not None)

    def _warn(self, num_rows: int) -> None:
        if self.unreadable:
            count = f"{len(self.unreadable)} of the {num_rows} images cannot be read"
            warnings.warn(f"{count}, their rows are left out: {self._named()}", stacklevel=4)


def feature_folder(folder: str | os.PathLike | None) -> Path:
    """The folder that was given, or one in the cache of ``datasets``."""
    if folder is None:
        return Path(datasets.config.HF_DATASETS_CACHE) / "singer_hf_features"
    return Path(folder).expanduser()


def _collate(rows: list[dict]) -> tuple[Tensor | None, list[str | None]]:
    pixels = [row["pixel_values"] for row in rows if "pixel_values" in row]
    return torch.stack(pixels) if pixels else None, [row.get("error") for row in rows]


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
