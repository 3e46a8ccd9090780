"""One model on one benchmark: from the data to metrics with intervals."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from singer_hf.evaluation.benchmarks.benchmark import DRAWN, Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import BenchmarkData, load_benchmark
from singer_hf.evaluation.benchmarks.catalog import get_benchmark
from singer_hf.evaluation.benchmarks.classification import (
    fit_linear,
    head_file,
    load_head,
    measure_knn,
    measure_linear,
    save_head,
)
from singer_hf.evaluation.benchmarks.dense import DenseExamples, measure_dense
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.benchmarks.run_settings import RunSettings
from singer_hf.evaluation.bootstrap import Outcomes, bootstrap_intervals
from singer_hf.evaluation.heads.linear_heads import LinearHead
from singer_hf.evaluation.results.result import Result


@dataclass(frozen=True)
class BenchmarkRun:
    """Results of a run.

    Attributes:
        results: All metrics, the main metric of the benchmark first.
        confusion: Confusion matrix (C, C), rows are the true classes; None for depth and nearest neighbours.
        examples: Test images with truth and prediction; None for classification.
    """

    results: list[Result]
    confusion: Tensor | None = None
    examples: DenseExamples | None = None


def run_benchmark(
    evaluated: EvaluatedModel,
    benchmark: Benchmark,
    data: BenchmarkData,
    settings: RunSettings,
    head: tuple[str, LinearHead] | None = None,
) -> BenchmarkRun:
    """Evaluates a model on a benchmark.

    Args:
        evaluated: The model.
        benchmark: The benchmark.
        data: Its data, see :func:`load_benchmark`.
        settings: Settings of the run.
        head: Trained head for a benchmark that reuses another one's; see :func:`reused_head`.

    Raises:
        ValueError: If data, labels and model do not fit; the message gives the reason.
    """
    confusion = examples = None
    if benchmark.task == "knn":
        outcomes, name, notes = measure_knn(evaluated, benchmark, data, settings)
    elif benchmark.task == "classification":
        outcomes, name, notes = measure_linear(evaluated, benchmark, data, settings, head)
        confusion = outcomes.confusion()
    else:
        outcomes, name, notes, examples = measure_dense(evaluated, benchmark, data, settings)
        confusion = outcomes.total().get("confusion")
    return BenchmarkRun(_results(evaluated, benchmark, data, settings, outcomes, name, notes), confusion, examples)


def reused_head(
    evaluated: EvaluatedModel,
    benchmark: Benchmark,
    settings: RunSettings,
    *,
    dataset_name: str | None = None,
    max_train_samples: int | None = None,
) -> tuple[str, LinearHead] | None:
    """Returns name and head for a benchmark that reuses a head, after training it if there is none on disk.

    Args:
        evaluated: The model.
        benchmark: The benchmark, such as ImageNet-R.
        settings: Settings of the run.
        dataset_name: Another copy of the data on which the head is trained.
        max_train_samples: Largest number of its images.

    Returns:
        None for a benchmark that trains its own head.

    Raises:
        FileNotFoundError: If there is no such head yet and its training data cannot be reached.
    """
    if not benchmark.head_from:
        return None
    file = head_file(evaluated, benchmark.head_from, settings, max_train_samples)
    if not file.is_file():
        origin = get_benchmark(benchmark.head_from)
        if dataset_name is not None:
            origin = replace(origin, train_name=dataset_name, image_column=None, target_column=None)
        data = load_benchmark(origin, max_train_samples=max_train_samples, max_test_samples=1, seed=settings.seed)
        name, head = fit_linear(evaluated, origin, data, settings)
        save_head(file, f"{name}, trained on {len(data.train)} images {data.fingerprint}", head)
    return load_head(file)


def _results(
    evaluated: EvaluatedModel,
    benchmark: Benchmark,
    data: BenchmarkData,
    settings: RunSettings,
    outcomes: Outcomes,
    head: str,
    notes: list[str],
) -> list[Result]:
    metrics = outcomes.metrics()
    intervals = bootstrap_intervals(outcomes, settings.resamples, settings.seed)
    missing = (float("nan"), float("nan"))
    names = sorted(metrics, key=lambda name: name != benchmark.metric)
    return [
        Result(
            model=evaluated.name,
            adapter=evaluated.adapter,
            source=evaluated.source,
            benchmark=benchmark.name,
            task=benchmark.task,
            metric=name,
            value=metrics[name],
            low=intervals.get(name, missing)[0],
            high=intervals.get(name, missing)[1],
            n=len(outcomes),
            seed=settings.seed,
            protocol=settings.protocol.name,
            changes=settings.changes(),
            head=head,
            dataset=_shown(benchmark),
            data_fingerprint=data.fingerprint,
            image_size=settings.size(evaluated.spec),
            num_parameters=evaluated.num_parameters,
            num_train=0 if data.train is None else len(data.train),
            notes=tuple(notes),
        )
        for name in names
    ]


def _shown(benchmark: Benchmark) -> str:
    """Name of the data without the path of a local folder."""
    name = benchmark.test_name or benchmark.train_name
    return Path(name).name if name != DRAWN and Path(name).exists() else name
