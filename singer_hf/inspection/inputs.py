"""Inputs of an audit: its settings, and batches of images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.image_processors import ImageSpec, image_spec, load_image_processor
from singer_hf.data.transforms import eval_transform, resize_transform


@dataclass
class AuditSettings:
    """Settings of an audit, which are also the flags of the command; the help texts document them.

    Raises:
        ValueError: If a number is out of its range.
    """

    model_name_or_path: list[str] = field(metadata={"help": "One or several models: folders or Hub ids."})
    output_dir: str = field(metadata={"help": "Folder for audit.json, figures/ and report.html."})
    adapter_name_or_path: str | None = field(default=None, metadata={"help": "SiNGER adapter of the model."})
    dataset_name: str | None = field(default=None, metadata={"help": "Folder, parquet file or Hub id; labels unused."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset."})
    image_column: str | None = field(default=None, metadata={"help": "Image column; detected by default."})
    max_samples: int = field(default=500, metadata={"help": "Number of images, sampled with `seed`."})
    seed: int = field(default=0, metadata={"help": "Seed of the sample."})
    processor_name_or_path: str | None = field(default=None, metadata={"help": "Image processor for all models."})
    image_size: list[int] | None = field(default=None, metadata={"help": "Height and width of the images."})
    batch_size: int = field(default=16, metadata={"help": "Images per batch; halved if memory is too small."})
    num_workers: int = field(default=0, metadata={"help": "Processes that load images."})
    num_pictures: int = field(default=3, metadata={"help": "Number of images shown in figures."})
    mad_factor: float = field(default=10.0, metadata={"help": "k of the outlier rule, median + k MAD."})
    absolute_threshold: float | None = field(default=None, metadata={"help": "Norm above which patches are counted."})
    device: str | None = field(default=None, metadata={"help": "Torch device; a GPU by default if available."})

    def __post_init__(self) -> None:
        for name, least in {"max_samples": 1, "batch_size": 1, "num_pictures": 1, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)!r}")
        if not self.mad_factor > 0:
            raise ValueError(f"`mad_factor` must be greater than 0, got {self.mad_factor!r}")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"`image_size` must be a height and a width, got {self.image_size}")


class ImageBatches:
    """Batches of pixel values (B, 3, H, W) of the readable images of a dataset.

    Args:
        rows: Dataset with the column ``"image"``.
        spec: Size and normalisation of the images.
        transform: PIL image -> tensor (3, H, W), or a transform of 8-bit pixels such as ``eval_transform(processor)``.
        batch_size: Images per batch.
        num_workers: Processes that load images.
        device: Device on which 8-bit pixels are normalised.

    Attributes:
        spec: See above.
        unreadable: Names and errors of the unreadable images found so far.
    """

    def __init__(
        self,
        rows: Dataset,
        spec: ImageSpec,
        transform: Callable,
        batch_size: int,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.device = spec, device
        self.unreadable: dict[str, None] = {}
        dataset = transform_images(rows, transform, normalize=False)
        self.normalization = dataset.normalization
        self.loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=_collate_readable)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            self.unreadable |= dict.fromkeys(batch["errors"])
            if batch["images"] is not None:
                yield self._normalized(batch["images"])

    def first(self) -> Tensor:
        """Returns the first batch (B, 3, H, W).

        Raises:
            ValueError: If no image can be read.
        """
        batch = next(iter(self), None)
        if batch is None:
            raise ValueError(f"none of the {len(self.unreadable)} images can be read: {self.list_unreadable()}")
        return batch

    def list_unreadable(self, limit: int = 5) -> str:
        """Returns the first unreadable images with their errors as one text."""
        return "; ".join(list(self.unreadable)[:limit])

    def _normalized(self, images: Tensor) -> Tensor:
        return images if self.normalization is None else self.normalization(images.to(self.device))


def _collate_readable(rows: list[dict]) -> dict:
    key = "pixels" if any("pixels" in row for row in rows) else "pixel_values"
    images = [row[key] for row in rows if key in row]
    errors = [row["error"] for row in rows if "error" in row]
    return {"images": torch.stack(images) if images else None, "errors": errors}


def load_images(settings: AuditSettings) -> Dataset:
    """Loads the sample of images, or draws scenes if no dataset is given.

    Args:
        settings: For the dataset, the number of images and the seed.
    """
    if settings.dataset_name is None:
        return select_image_and_label(scene_dataset(settings.max_samples, settings.seed))
    return load_image_dataset(
        settings.dataset_name,
        split=settings.dataset_split,
        image_column=settings.image_column,
        max_samples=settings.max_samples,
        seed=settings.seed,
    )


def load_image_batches(name: str, settings: AuditSettings, device: torch.device | str = "cpu") -> ImageBatches:
    """Loads the images, normalised for one model.

    Args:
        name: Folder or Hub id of the model, whose image processor is used unless the settings name another one.
        settings: For the images, their size and the batch size.
        device: Device of the model.

    Raises:
        ValueError: If there is no image processor.
    """
    processor = load_image_processor(settings.processor_name_or_path or name)
    if processor is None:
        raise ValueError(f"`model_name_or_path` {name!r} has no image processor; give `--processor_name_or_path`")
    spec, transform = image_spec(processor), eval_transform(processor)
    if settings.image_size is not None:
        transform = resize_transform(settings.image_size, spec)
    rows, workers = load_images(settings), settings.num_workers
    return ImageBatches(rows, spec, transform, settings.batch_size, workers, device)
