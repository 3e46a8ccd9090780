"""Evaluates frozen features: linear probes, nearest neighbours, segmentation and depth, on benchmarks or your data.

    python examples/evaluate.py --list
    python examples/evaluate.py --model_name_or_path facebook/dinov2-small outputs/student --benchmark food101 \
        --protocol dinov2 --output_dir outputs/evaluation
    python examples/evaluate.py --model_name_or_path outputs/student --benchmark camvid --dataset_name path/to/camvid
    python examples/evaluate.py --model_name_or_path outputs/student --task knn --dataset_name path/to/imagefolder

Writes results.json, results.md, per_class_*.json and figures/*.png into output_dir. Several models give one table.
`--benchmark` takes several names and the groups DS, FG, paper and scenes. A YAML file of the same names can stand in
place of the flags.
"""

import importlib.util
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import HfArgumentParser

from singer_hf.data.image_processors import image_spec, load_image_processor
from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import load_benchmark, with_folder
from singer_hf.evaluation.benchmarks.catalog import benchmark_table, expand_groups, get_benchmark
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.benchmarks.protocols import PROTOCOLS, get_protocol
from singer_hf.evaluation.benchmarks.run import BenchmarkRun, reused_head, run_benchmark
from singer_hf.evaluation.benchmarks.run_settings import RunSettings
from singer_hf.evaluation.figures import confusion_figure, depth_figure, segmentation_figure, size_figure
from singer_hf.evaluation.results import (
    Result,
    has_student_card,
    results_table,
    write_per_class,
    write_results,
    write_to_card,
)
from singer_hf.vit.loading import load_model

TASKS = ("classification", "segmentation", "depth", "knn")
# Flags that override a field of the benchmark, by its name.
OVERRIDES = {
    "dataset_config": "config_name",
    "train_split": "train_split",
    "test_split": "test_split",
    "image_column": "image_column",
    "target_column": "target_column",
    "num_classes": "num_classes",
    "ignore_values": "ignore_values",
    "label_offset": "label_offset",
    "depth_scale": "depth_scale",
}


@dataclass
class Settings:
    model_name_or_path: list[str] | None = field(default=None, metadata={"help": "Models: folders or Hub ids."})
    benchmark: list[str] | None = field(default=None, metadata={"help": "Names or groups, see `--list`."})
    task: str | None = field(default=None, metadata={"help": f"One of {', '.join(TASKS)}, on `--dataset_name`."})
    dataset_name: str | None = field(default=None, metadata={"help": "Folder or Hub id; also for one benchmark."})
    protocol: str | None = field(default=None, metadata={"help": f"One of {', '.join(PROTOCOLS)}. Default: singer."})
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder for everything that is written."})
    write_card: bool = field(default=False, metadata={"help": "Put the metrics into the README.md of local students."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    train_split: str | None = field(default=None, metadata={"help": "Split the heads are trained on."})
    test_split: str | None = field(default=None, metadata={"help": "Split that is measured."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the images."})
    target_column: str | None = field(default=None, metadata={"help": "Column with class, mask or depth."})
    num_classes: int | None = field(default=None, metadata={"help": "Number of classes; needed for masks."})
    ignore_values: list[int] | None = field(default=None, metadata={"help": "Mask values that do not count."})
    label_offset: int | None = field(default=None, metadata={"help": "Added to the other mask values."})
    depth_scale: float | None = field(default=None, metadata={"help": "Metres per unit of integer depth maps."})
    head_dataset_name: str | None = field(
        default=None, metadata={"help": "Copy of ImageNet-1k for benchmarks that reuse its head."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Seeded subset of the training split."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Seeded subset of the test split."})
    num_epochs: int | None = field(default=None, metadata={"help": "Instead of the protocol's."})
    batch_size: int | None = field(default=None, metadata={"help": "Instead of the protocol's."})
    learning_rates: list[float] | None = field(default=None, metadata={"help": "Instead of the protocol's."})
    image_size: int | None = field(default=None, metadata={"help": "Default: what the model's processor gives."})
    resize_size: int | None = field(default=None, metadata={"help": "Shorter side before the crop or window."})
    depth_temperature: float | None = field(default=None, metadata={"help": "Instead of the protocol's."})
    augment: bool = field(default=False, metadata={"help": "Train on random views; features are not cached then."})
    processor_name_or_path: str | None = field(default=None, metadata={"help": "Image processor for all models."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})
    device: str | None = field(default=None, metadata={"help": "Torch device; a GPU if there is one."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    cache_budget_gib: float = field(default=16.0, metadata={"help": "Largest size of one cache of features."})
    num_pictures: int = field(default=4, metadata={"help": "Test images in the figures of masks and depth maps."})
    resamples: int = field(default=1000, metadata={"help": "Test sets drawn for the 95 % intervals."})
    list: bool = field(default=False, metadata={"help": "Show the benchmarks and end."})

    def __post_init__(self) -> None:
        if self.list:
            return
        if not self.model_name_or_path:
            raise ValueError("`--model_name_or_path` must name at least one model")
        if self.protocol is not None:
            get_protocol(self.protocol)  # before any data is read
        if self.task not in (None, *TASKS):
            raise ValueError(f"`--task` must be one of {', '.join(TASKS)}, got {self.task!r}")
        if not self.benchmark and not (self.task and self.dataset_name):
            raise ValueError("give `--benchmark NAME` (see `--list`), or `--task` with `--dataset_name`")
        if self.benchmark and self.task not in (None, "knn"):
            raise ValueError(f"`--task` beside `--benchmark` can only be knn, got {self.task!r}")


def chosen_benchmarks(settings: Settings) -> list[Benchmark]:
    overrides = {
        name: getattr(settings, flag) for flag, name in OVERRIDES.items() if getattr(settings, flag) is not None
    }
    if "ignore_values" in overrides:
        overrides["ignore_values"] = tuple(overrides["ignore_values"])
    if not settings.benchmark:
        name = Path(settings.dataset_name).name
        own = Benchmark(name, settings.task, settings.dataset_name, image_column=None, target_column=None)
        return [replace(own, **overrides)]
    names = expand_groups(settings.benchmark)
    if len(names) > 1 and (settings.dataset_name or overrides):
        raise ValueError(f"`--dataset_name` and the flags about its columns go with one benchmark, got {len(names)}")
    benchmarks = [get_benchmark(name) for name in names]
    if settings.dataset_name:
        benchmarks = [with_folder(benchmark, settings.dataset_name) for benchmark in benchmarks]
    if settings.task == "knn":
        overrides["task"] = "knn"
        if wrong := [item.name for item in benchmarks if item.task != "classification"]:
            raise ValueError(f"`--task knn` needs benchmarks of classes, got {wrong[0]!r}")
    return [replace(benchmark, **overrides) for benchmark in benchmarks]


def short_names(names: list[str]) -> list[str]:
    """The last parts of paths, as few as tell them apart."""
    parts = [Path(name).resolve().parts if Path(name).exists() else Path(name).parts for name in names]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-depth:]) for part in parts]
        if len(set(short)) == len(short):
            break
    return short


def load_models(settings: Settings) -> dict[str, EvaluatedModel]:
    names = list(dict.fromkeys(settings.model_name_or_path))
    labels = short_names(names)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    models = {}
    for name, label in zip(names, labels, strict=True):
        processor = load_image_processor(settings.processor_name_or_path or name)
        if processor is None:
            raise ValueError(
                f"`--model_name_or_path` {name!r} has no image processor; give `--processor_name_or_path`"
            )
        model = load_model(name, "model_name_or_path").to(device).eval().requires_grad_(False)
        models[name] = EvaluatedModel(label, model, image_spec(processor))
    return models


def run_settings(settings: Settings, benchmark: Benchmark) -> RunSettings:
    same = ("seed", "num_epochs", "batch_size", "image_size", "resize_size", "augment", "depth_temperature")
    same += ("cache_budget_gib", "num_workers", "num_pictures", "resamples")
    return RunSettings(
        get_protocol(settings.protocol or benchmark.protocol),
        Path(settings.output_dir) / "work",
        learning_rates=settings.learning_rates and tuple(settings.learning_rates),
        **{name: getattr(settings, name) for name in same},
    )


def evaluate(settings: Settings, models: dict[str, EvaluatedModel], benchmark: Benchmark) -> dict[str, list[Result]]:
    """Results by model; the figures of the benchmark are drawn."""
    limits = {"max_train_samples": settings.max_train_samples, "seed": settings.seed}
    data = load_benchmark(benchmark, max_test_samples=settings.max_test_samples, **limits)
    how, runs = run_settings(settings, benchmark), {}
    for name, evaluated in models.items():
        print(f"{benchmark.name}: {evaluated.name}, {how.protocol.name} protocol, {len(data.test)} test images")
        head = reused_head(
            evaluated,
            benchmark,
            how,
            dataset_name=settings.head_dataset_name,
            max_train_samples=settings.max_train_samples,
        )
        runs[name] = run_benchmark(evaluated, benchmark, data, how, head)
    confusions = {run.results[0].model: run.confusion for run in runs.values() if run.confusion is not None}
    if confusions:
        write_per_class(settings.output_dir, benchmark, data.class_names, confusions)
    draw(Path(settings.output_dir) / "figures", benchmark, data.class_names, runs, how.protocol.max_depth)
    return {name: run.results for name, run in runs.items()}


def draw(
    folder: Path, benchmark: Benchmark, names: tuple[str, ...], runs: dict[str, BenchmarkRun], max_depth: float
) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        print("no figures: matplotlib is not installed (pip install 'singer-hf[plots]')")
        return
    folder.mkdir(parents=True, exist_ok=True)
    labels = {name: run.results[0].model for name, run in runs.items()}
    for name, run in runs.items():
        if run.confusion is not None:
            title = f"{benchmark.name}, {labels[name]}"
            file = f"{benchmark.name}_confusion_{labels[name].replace('/', '_')}.png"
            confusion_figure(run.confusion, names, title).savefig(folder / file, dpi=130)
    first = next(iter(runs.values()))
    if first.pictures is not None and first.pictures.images:
        predictions = {labels[name]: run.pictures.predictions for name, run in runs.items()}
        shown = (first.pictures.images, first.pictures.truths, predictions)
        figure = depth_figure(*shown, max_depth) if benchmark.task == "depth" else segmentation_figure(*shown, names)
        figure.savefig(folder / f"{benchmark.name}_pictures.png", dpi=130)
    main = [run.results[0] for run in runs.values()]
    points = [(item.model, item.num_parameters, item.value, item.low, item.high) for item in main]
    size_figure(points, main[0].metric, benchmark.name).savefig(folder / f"{benchmark.name}_size.png", dpi=130)


def run(settings: Settings) -> None:
    students = [name for name in settings.model_name_or_path if has_student_card(name)]
    if settings.write_card and not students:
        raise ValueError("`--write_card` needs a student's folder with the README.md of its training among the models")
    benchmarks, models = chosen_benchmarks(settings), load_models(settings)
    results: dict[str, list[Result]] = {name: [] for name in models}
    missing = []
    for benchmark in benchmarks:
        try:
            for name, metrics in evaluate(settings, models, benchmark).items():
                results[name] += metrics
        except FileNotFoundError as error:
            missing.append(str(error))
            continue
        write_results(settings.output_dir, [item for metrics in results.values() for item in metrics])
    if any(results.values()):
        print(results_table([item for metrics in results.values() for item in metrics]))
        print(f"See {Path(settings.output_dir) / 'results.json'} and {Path(settings.output_dir) / 'figures'}")
    if missing:
        raise FileNotFoundError("\n".join(missing))
    if settings.write_card:
        for name in students:
            write_to_card(name, results[name])
            print(f"metrics written into {Path(name) / 'README.md'}")


def main() -> None:
    parser = HfArgumentParser(Settings)
    try:
        if len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml")):
            (settings,) = parser.parse_yaml_file(sys.argv[1])
        else:
            (settings,) = parser.parse_args_into_dataclasses()
        if settings.list:
            print(benchmark_table())
            return
        run(settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
