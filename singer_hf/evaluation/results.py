"""Results of an evaluation with the settings that repeat them: results.json, markdown tables and the model card."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard
from torch import Tensor

from singer_hf.cards.evaluation_section import replace_evaluations
from singer_hf.cards.hub_metadata import Evaluation, eval_results
from singer_hf.cards.markdown import markdown_table
from singer_hf.cards.student_card import library_versions
from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.catalog import MEANS, mean_metrics
from singer_hf.evaluation.metrics import TASK_METRICS, greater_is_better, per_class_accuracy, per_class_iou

_TAG = "singer-hf"
_OTHER_LIBRARIES = ("torchvision", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Result:
    """One metric of one model on one benchmark.

    Attributes:
        model: Name of the model.
        benchmark: Name of the benchmark.
        task: "classification", "segmentation", "depth" or "knn".
        metric: Name of the metric.
        value: Value of the metric; accuracies and IoU in [0, 1], errors of depth in metres.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
        n: Number of test images.
        seed: Seed of the run.
        protocol: Name of the protocol.
        changes: Settings that differ from the protocol.
        head: Name of the chosen head, or description of the nearest-neighbour vote.
        dataset: Name of the data, a Hub id or a folder's own name.
        data_fingerprint: Hash of the rows.
        image_size: (height, width) of the model's input in pixels.
        num_parameters: Number of the model's parameters.
        num_train: Number of training images; 0 for a reused head, whose name gives it.
        notes: What the model lacks for the protocol, and the replacement.
        adapter: Name of the SiNGER adapter with which the model was evaluated; empty without one.
    """

    model: str
    benchmark: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    protocol: str
    changes: dict[str, object] = field(default_factory=dict)
    head: str = ""
    dataset: str = ""
    data_fingerprint: str = ""
    image_size: tuple[int, int] = (0, 0)
    num_parameters: int = 0
    num_train: int = 0
    notes: tuple[str, ...] = ()
    adapter: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this is the main metric of the benchmark."""
        return self.metric == TASK_METRICS[self.task].main_metric()


def write_results(folder: str | Path, results: Sequence[Result]) -> None:
    """Writes ``results.json`` and ``results.md`` into ``folder``.

    Raises:
        ValueError: If there are no results.
    """
    if not results:
        raise ValueError("`results` must hold at least one metric, got none")
    rows = [
        {**asdict(result), "greater_is_better": greater_is_better(result.metric), "interval": "95 % bootstrap"}
        for result in results
    ]
    means = {model: mean_metrics(values) for model, values in _main_metrics(results).items()}
    data = {"versions": versions(), "results": _without_nan(rows), "means": means}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page = "\n\n".join((results_table(results), all_metrics_table(results), metric_descriptions(results)))
    (folder / "results.md").write_text(page + "\n", encoding="utf-8")


def write_per_class(
    folder: str | Path, benchmark: Benchmark, class_names: Sequence[str], confusions: Mapping[str, Tensor]
) -> None:
    """Writes ``per_class_<benchmark>.json``: the samples of each class and the accuracy, or IoU, of each model on it.

    Args:
        folder: Folder to write into.
        benchmark: The benchmark.
        class_names: Names of the C classes.
        confusions: Name of the model -> confusion matrix (C, C), rows are the true classes.
    """
    per_class = per_class_iou if benchmark.task == "segmentation" else per_class_accuracy
    metrics = {model: per_class(confusion).tolist() for model, confusion in confusions.items()}
    samples = next(iter(confusions.values())).sum(dim=1).long().tolist()
    rows = [
        {"class": name, "n": samples[i], **{model: values[i] for model, values in metrics.items()}}
        for i, name in enumerate(class_names)
    ]
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps(_without_nan(rows), indent=1, allow_nan=False)
    Path(folder, f"per_class_{benchmark.name}.json").write_text(text + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Returns the versions of the libraries on which the metrics depend."""
    return {**library_versions(), **{name: version(name) for name in _OTHER_LIBRARIES}}


def results_table(results: Sequence[Result]) -> str:
    """Returns a markdown table: a row per model, a column per benchmark with its 95 % interval, and the means."""
    main = [result for result in results if result.is_main]
    columns = list(dict.fromkeys((result.benchmark, result.metric) for result in main))
    metrics = _main_metrics(results)
    means = [name for name in MEANS if any(name in mean_metrics(row) for row in metrics.values())]
    header = ["model", "parameters", *(f"{name} {metric} {_arrow(metric)}" for name, metric in columns), *means]
    rows = []
    for model in dict.fromkeys(result.model for result in main):
        own = {(result.benchmark, result.metric): result for result in main if result.model == model}
        size = next(iter(own.values())).num_parameters
        cells = [_cell(own[column]) if column in own else "-" for column in columns]
        averages = mean_metrics(metrics[model])
        cells += [f"{averages[name]:.3f}" if name in averages else "-" for name in means]
        rows.append((model, f"{size / 1e6:.3g} M", *cells))
    return markdown_table(header, rows)


def all_metrics_table(results: Iterable[Result]) -> str:
    """Returns a markdown table with a row per metric."""
    header = ("model", "benchmark", "metric", "value", "95 % interval", "n", "head", "protocol", "changes")
    rows = []
    for item in results:
        changes = ", ".join(f"{name}={value}" for name, value in item.changes.items()) or "-"
        row = (item.model, item.benchmark, f"{item.metric} {_arrow(item.metric)}", f"{item.value:.4f}")
        row += (f"{item.low:.4f} to {item.high:.4f}", item.n, item.head, item.protocol, changes)
        rows.append(row)
    return markdown_table(header, rows)


def metric_descriptions(results: Iterable[Result]) -> str:
    """Returns a markdown list with the description of the metrics of each task."""
    tasks = dict.fromkeys(result.task for result in results)
    return "\n".join(f"- {task}: {TASK_METRICS[task].description}" for task in tasks)


def has_student_card(folder: str | Path) -> bool:
    """Returns whether ``folder`` is the local folder of a student, with a README.md by the trainer of this package."""
    file = Path(folder) / "README.md"
    return file.is_file() and _TAG in (ModelCard.load(file).data.tags or ())


def write_to_card(folder: str | Path, results: Sequence[Result]) -> None:
    """Writes the main metrics into the card in ``folder``, metadata and text, and replaces older ones.

    Args:
        folder: Folder of a student with its README.md.
        results: Results of this student.

    Raises:
        ValueError: If ``folder`` has no card of a student.
    """
    if not has_student_card(folder):
        raise ValueError(
            f"`folder` must be a student's folder with the README.md of its training, got {str(folder)!r}"
        )
    card = ModelCard.load(Path(folder) / "README.md")
    rows = [
        Evaluation(
            *(result.task, result.dataset or result.benchmark, result.metric, result.value),
            *(result.n, result.low, result.high),
        )
        for result in results
        if result.is_main
    ]
    new = eval_results(rows)
    kept = [old for old in card.data.eval_results or () if not any(_is_same(old, item) for item in new)]
    replace_evaluations(card, [*kept, *new])
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.save(Path(folder) / "README.md")


def _is_same(first: object, second: object) -> bool:
    names = ("task_type", "dataset_name", "metric_name")  # of tasks on the same data the Hub keeps one name
    return all(getattr(first, name) == getattr(second, name) for name in names)


def _main_metrics(results: Iterable[Result]) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = {}
    for result in results:
        if result.is_main:
            metrics.setdefault(result.model, {})[result.benchmark] = result.value
    return metrics


def _cell(result: Result) -> str:
    return f"{result.value:.3f} ({result.low:.3f} to {result.high:.3f})"


def _arrow(metric: str) -> str:
    return "↑" if greater_is_better(metric) else "↓"


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
