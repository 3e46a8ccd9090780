"""Inputs of an audit: its options, and the settings of the command."""

from dataclasses import dataclass, field
from typing import Any

from singer_hf.artifacts.outliers import OutlierRule

# Flags that are options under the same name.
_SAME_NAMES = ("inline", "image_column", "max_samples", "seed", "num_pictures", "batch_size", "num_workers")


@dataclass(frozen=True)
class AuditOptions:
    """Options of an audit; :func:`singer_hf.inspection.audit_models.audit` documents them.

    Raises:
        ValueError: If a number is out of its range.
    """

    processor: Any = None
    split: str = "train"
    image_column: str | None = None
    max_samples: int = 500
    seed: int = 0
    image_size: tuple[int, int] | None = None
    rule: OutlierRule = field(default_factory=OutlierRule)
    inline: bool = False
    num_pictures: int = 3
    batch_size: int = 16
    num_workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in {"max_samples": 1, "batch_size": 1, "num_pictures": 1, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)!r}")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"`image_size` must be a height and a width, got {self.image_size}")


@dataclass
class AuditSettings:
    """Settings of an audit, which are also the flags of the command; the help texts document them.

    Raises:
        ValueError: If a number is out of its range.
    """

    model_name_or_path: list[str] = field(metadata={"help": "One or several models: folders or Hub ids."})
    output_dir: str = field(metadata={"help": "Folder for audit.json, figures/ and report.html."})
    adapter_name_or_path: str | None = field(default=None, metadata={"help": "SiNGER adapter of the model."})
    inline: bool = field(default=False, metadata={"help": "Measure the model as it runs with its adapter."})
    dataset_name: str | None = field(default=None, metadata={"help": "Folder, parquet file or Hub id; labels unused."})
    demo: bool = field(default=False, metadata={"help": "Audit on drawn scenes, instead of a dataset."})
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
        self.options()
        if self.demo and self.dataset_name is not None:
            raise ValueError(f"`demo` draws its own images; leave out `dataset_name`, got {self.dataset_name!r}")
        if self.inline and self.adapter_name_or_path is None:
            raise ValueError("`inline` needs `adapter_name_or_path`: without an adapter every model runs as it is")
        if not self.demo and self.dataset_name is None:
            raise ValueError(
                "`dataset_name` must name images such as the model will see (folder, parquet file or Hub id): the "
                "verdict holds for images like the audited ones; `--demo` takes drawn scenes"
            )

    def options(self) -> AuditOptions:
        """Returns the options of the audit."""
        return AuditOptions(
            processor=self.processor_name_or_path,
            split=self.dataset_split,
            image_size=self.image_size,
            rule=OutlierRule(mad_factor=self.mad_factor, absolute=self.absolute_threshold),
            **{name: getattr(self, name) for name in _SAME_NAMES},
        )
