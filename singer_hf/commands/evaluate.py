r"""Evaluates frozen features: linear probes, nearest neighbours, segmentation and depth, on benchmarks or your data.

    singer-hf evaluate --list
    singer-hf evaluate --model_name_or_path facebook/dinov2-small outputs/student --benchmark food101 \
        --protocol dinov2 --output_dir outputs/evaluation
    singer-hf evaluate --model_name_or_path outputs/student --benchmark camvid --dataset_name path/to/camvid
    singer-hf evaluate --model_name_or_path teacher/ --adapter_name_or_path outputs/cleaned --benchmark scenes
    singer-hf evaluate --model_name_or_path outputs/student --task knn --dataset_name path/to/imagefolder

Writes results.json, results.md, per_class_*.json and figures/*.png into output_dir. Several models share one table.
Results of other models and benchmarks that the folder holds stay in it. `--benchmark` takes several names and the
groups DS, FG, paper, scenes and all (every benchmark whose data is on this machine). A YAML file with the same names
can precede or replace the flags.
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.catalog import ALL, benchmark_table
from singer_hf.evaluation.benchmarks.protocols import PROTOCOLS, get_protocol
from singer_hf.evaluation.benchmarks.run_settings import RunSettings
from singer_hf.evaluation.data_at_hand import at_hand
from singer_hf.evaluation.evaluate import run_benchmarks
from singer_hf.evaluation.evaluate_models import select_benchmarks
from singer_hf.evaluation.given_models import given_models
from singer_hf.evaluation.metrics import TASK_METRICS
from singer_hf.evaluation.results.card import has_student_card, write_to_card
from singer_hf.evaluation.results.files import read_results
from singer_hf.evaluation.results.tables import results_table

TASKS = tuple(TASK_METRICS)
# Flag -> field of Benchmark that it overrides.
OVERRIDES = {
    "dataset_config": "config_name",
    **{name: name for name in ("train_split", "test_split", "image_column", "target_column")},
    **{name: name for name in ("num_classes", "ignore_values", "label_offset", "depth_scale")},
}
# Flags that are fields of RunSettings.
RUN_FLAGS = (
    *("seed", "num_epochs", "batch_size", "image_size", "resize_size", "augment", "depth_temperature"),
    *("cache_budget_gib", "num_workers", "num_pictures", "resamples"),
)
_POSITIVE = (
    *("num_epochs", "batch_size", "image_size", "resize_size", "resamples"),
    *("max_train_samples", "max_test_samples", "num_classes"),
)
GROUPS = {
    "Models and benchmarks": (
        "model_name_or_path",
        "adapter_name_or_path",
        "benchmark",
        "list",
        "protocol",
        "processor_name_or_path",
    ),
    "Own data": (
        *("task", "dataset_name", "dataset_config", "train_split", "test_split", "image_column", "target_column"),
        *("num_classes", "ignore_values", "label_offset", "depth_scale", "head_dataset_name"),
        *("max_train_samples", "max_test_samples"),
    ),
    "Protocol": (
        *("num_epochs", "batch_size", "learning_rates", "image_size", "resize_size", "depth_temperature", "augment"),
        "seed",
    ),
    "Output and speed": (
        *("output_dir", "write_card", "num_pictures", "resamples", "device", "num_workers", "cache_budget_gib"),
    ),
}
_NOT_NEGATIVE = ("num_workers", "num_pictures", "cache_budget_gib", "seed")


@dataclass
class Settings:
    """Flags of the command."""

    model_name_or_path: list[str] | None = field(default=None, metadata={"help": "Models: folders or Hub ids."})
    adapter_name_or_path: str | None = field(default=None, metadata={"help": "SiNGER adapter of the only model."})
    benchmark: list[str] | None = field(default=None, metadata={"help": "Names or groups, see `--list`."})
    task: str | None = field(default=None, metadata={"help": f"One of {', '.join(TASKS)}, on `--dataset_name`."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Folder or Hub id, also for one benchmark; for several a folder of folders."}
    )
    protocol: str | None = field(default=None, metadata={"help": f"One of {', '.join(PROTOCOLS)}. Default: singer."})
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder for all files."})
    write_card: bool = field(default=False, metadata={"help": "Add the metrics to the README.md of local students."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    train_split: str | None = field(default=None, metadata={"help": "Split on which the heads are trained."})
    test_split: str | None = field(default=None, metadata={"help": "Split on which the metrics are computed."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the images."})
    target_column: str | None = field(default=None, metadata={"help": "Column with class, mask or depth."})
    num_classes: int | None = field(default=None, metadata={"help": "Number of classes; required for masks."})
    ignore_values: list[int] | None = field(default=None, metadata={"help": "Mask values that are ignored."})
    label_offset: int | None = field(default=None, metadata={"help": "Number added to the other mask values."})
    depth_scale: float | None = field(default=None, metadata={"help": "Metres per unit of integer depth maps."})
    head_dataset_name: str | None = field(
        default=None, metadata={"help": "Copy of ImageNet-1k for benchmarks that reuse its head."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Seeded subset of the training split."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Seeded subset of the test split."})
    num_epochs: int | None = field(default=None, metadata={"help": "Epochs. Default: the protocol's."})
    batch_size: int | None = field(default=None, metadata={"help": "Batch size. Default: the protocol's."})
    learning_rates: list[float] | None = field(default=None, metadata={"help": "Default: the protocol's."})
    image_size: int | None = field(default=None, metadata={"help": "Default: that of the model's processor."})
    resize_size: int | None = field(default=None, metadata={"help": "Shorter side before the crop or window."})
    depth_temperature: float | None = field(default=None, metadata={"help": "Default: the protocol's."})
    augment: bool = field(default=False, metadata={"help": "Train on random crops; features are not cached then."})
    processor_name_or_path: str | None = field(default=None, metadata={"help": "Image processor for all models."})
    seed: int = field(default=0, metadata={"help": "Seed of all random draws."})
    device: str | None = field(default=None, metadata={"help": "Torch device. Default: a GPU if there is one."})
    num_workers: int = field(default=0, metadata={"help": "Number of processes that load images."})
    cache_budget_gib: float = field(default=16.0, metadata={"help": "Largest size of one cache of features."})
    num_pictures: int = field(default=4, metadata={"help": "Test images in the figures of masks and depth maps."})
    resamples: int = field(default=1000, metadata={"help": "Test sets drawn for the 95 %% intervals."})
    list: bool = field(default=False, metadata={"help": "Print the benchmarks and exit."})

    def __post_init__(self) -> None:
        if self.list:
            return
        if not self.model_name_or_path:
            raise ValueError("`--model_name_or_path` must name at least one model")
        self._check_adapter()
        self._check_numbers()
        if self.protocol is not None:
            get_protocol(self.protocol)  # before any data is loaded
        if self.task not in (None, *TASKS):
            raise ValueError(f"`--task` must be one of {', '.join(TASKS)}, got {self.task!r}")
        if not self.benchmark and not (self.task and self.dataset_name):
            raise ValueError("give `--benchmark NAME` (see `--list`), or `--task` with `--dataset_name`")
        if self.benchmark and self.task not in (None, "knn"):
            raise ValueError(f"`--task` with `--benchmark` must be knn, got {self.task!r}")

    def _check_adapter(self) -> None:
        if self.adapter_name_or_path is None:
            return
        if (number := len(self.model_name_or_path)) > 1:
            raise ValueError(f"`--adapter_name_or_path` goes with one model, got {number} models")
        if self.write_card:
            raise ValueError(
                "`--write_card` must be left out with `--adapter_name_or_path`: the card is that of the bare model"
            )

    def _check_numbers(self) -> None:
        for name, least in {**dict.fromkeys(_POSITIVE, 1), **dict.fromkeys(_NOT_NEGATIVE, 0)}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`--{name}` must be at least {least}, got {value!r}")
        if self.learning_rates is not None and not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"`--learning_rates` must be positive numbers, got {self.learning_rates}")

    def benchmarks(self) -> "list[Benchmark]":
        """Returns the benchmarks to run."""
        given = {name: getattr(self, flag) for flag, name in OVERRIDES.items() if getattr(self, flag) is not None}
        if "ignore_values" in given:
            given["ignore_values"] = tuple(given["ignore_values"])
        return select_benchmarks(self.benchmark, task=self.task, dataset_name=self.dataset_name, overrides=given)

    def run_settings(self, benchmark: Benchmark) -> RunSettings:
        """Returns the settings of a run on ``benchmark``."""
        return RunSettings(
            get_protocol(self.protocol or benchmark.protocol),
            Path(self.output_dir) / "work",
            learning_rates=self.learning_rates and tuple(self.learning_rates),
            **{name: getattr(self, name) for name in RUN_FLAGS},
        )


def run(settings: Settings) -> None:
    """Evaluates all models on all benchmarks, and writes results and cards.

    Raises:
        FileNotFoundError: If the data of a benchmark cannot be reached; the other benchmarks are run.
        ValueError: If the flags do not fit the models or the data, or ``output_dir`` holds results that cannot be read
            or compared with the new ones.
    """
    students = [name for name in settings.model_name_or_path if has_student_card(name)]
    if settings.write_card and not students:
        raise ValueError("`--write_card` needs a student's folder with the README.md of its training among the models")
    read_results(settings.output_dir)  # a damaged file is reported before any work
    benchmarks = settings.benchmarks()
    if ALL in (settings.benchmark or ()):
        benchmarks, skipped = at_hand(benchmarks, settings.head_dataset_name)
        print(*(f"skipped {text}" for text in skipped), sep="\n")
    models = given_models(
        list(dict.fromkeys(settings.model_name_or_path)),
        settings.processor_name_or_path,
        settings.device,
        settings.adapter_name_or_path,
        argument="model_name_or_path",
    )
    limits = {name: getattr(settings, name) for name in ("head_dataset_name", "max_train_samples", "max_test_samples")}
    results, missing = run_benchmarks(models, benchmarks, settings.run_settings, settings.output_dir, **limits)
    if any(results.values()):
        print(results_table(read_results(settings.output_dir)))
        print(f"See {Path(settings.output_dir) / 'results.json'} and {Path(settings.output_dir) / 'figures'}")
    if missing:
        raise FileNotFoundError("; ".join(missing))
    if settings.write_card:
        for name in students:
            write_to_card(name, results[name])
            print(f"metrics added to {Path(name) / 'README.md'}")


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags or a YAML file and runs the command.

    Args:
        arguments: The flags; None takes those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    (settings,) = CommandParser(Settings, command="evaluate", about=__doc__, groups=GROUPS).parse(given)
    if settings.list:
        print(benchmark_table())
    else:
        run(settings)
