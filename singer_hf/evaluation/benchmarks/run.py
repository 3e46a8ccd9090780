"""One model on one benchmark: from data to figures with intervals."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from singer_hf.evaluation.benchmarks.benchmark_data import BenchmarkData, load_benchmark
from singer_hf.evaluation.benchmarks.bootstrap import Outcomes, bootstrap_intervals
from singer_hf.evaluation.benchmarks.catalog import DRAWN, Benchmark, get_benchmark
from singer_hf.evaluation.benchmarks.classification import (
    fit_linear,
    head_file,
    load_head,
    measure_knn,
    measure_linear,
    save_head,
)
from singer_hf.evaluation.benchmarks.dense import Pictures, measure_dense
from singer_hf.evaluation.benchmarks.run_settings import RunSettings, Subject
from singer_hf.evaluation.heads.heads import LinearHead
from singer_hf.evaluation.results import Result


@dataclass(frozen=True)
class BenchmarkRun:
    """What came out.

    Attributes:
        results: All figures, the benchmark's main one first.
        confusion: Confusion matrix (C, C), rows are the truth; None for depth and nearest neighbours.
        pictures: Test images with truth and prediction; None for classification.
    """

    results: list[Result]
    confusion: Tensor | None = None
    pictures: Pictures | None = None


def run_benchmark(
    subject: Subject,
    benchmark: Benchmark,
    data: BenchmarkData,
    settings: RunSettings,
    head: tuple[str, LinearHead] | None = None,
) -> BenchmarkRun:
    """Evaluates a model on a benchmark.

    Args:
        subject: The model.
        benchmark: The benchmark.
        data: What :func:`load_benchmark` gave for it.
        settings: How to run.
        head: The trained head for a benchmark that reuses another one's; see :func:`reused_head`.

    Raises:
        ValueError: If data, labels and model do not fit; the message says what.
    """
    confusion = pictures = None
    if benchmark.task == "knn":
        outcomes, name, notes = measure_knn(subject, benchmark, data, settings)
    elif benchmark.task == "classification":
        outcomes, name, notes = measure_linear(subject, benchmark, data, settings, head)
        confusion = outcomes.confusion()
    else:
        outcomes, name, notes, pictures = measure_dense(subject, benchmark, data, settings)
        confusion = outcomes.total().get("confusion")
    return BenchmarkRun(_results(subject, benchmark, data, settings, outcomes, name, notes), confusion, pictures)


def reused_head(
    subject: Subject,
    benchmark: Benchmark,
    settings: RunSettings,
    *,
    dataset_name: str | None = None,
    max_train_samples: int | None = None,
) -> tuple[str, LinearHead] | None:
    """The head a benchmark reuses, trained now unless it was before; None for a benchmark that trains its own.

    Args:
        subject: The model.
        benchmark: The benchmark, such as ImageNet-R.
        settings: How to run.
        dataset_name: Another copy of the data the head is trained on.
        max_train_samples: At most this many images of it.

    Raises:
        FileNotFoundError: If there is no such head yet and its training data cannot be reached.
    """
    if not benchmark.head_from:
        return None
    file = head_file(subject, benchmark.head_from, settings, max_train_samples)
    if not file.is_file():
        source = get_benchmark(benchmark.head_from)
        if dataset_name is not None:
            source = replace(source, train_name=dataset_name, image_column=None, target_column=None)
        data = load_benchmark(source, max_train_samples=max_train_samples, max_test_samples=1, seed=settings.seed)
        name, head = fit_linear(subject, source, data, settings)
        save_head(file, f"{name}, trained on {len(data.train)} images {data.fingerprint}", head)
    return load_head(file)


def _results(
    subject: Subject,
    benchmark: Benchmark,
    data: BenchmarkData,
    settings: RunSettings,
    outcomes: Outcomes,
    head: str,
    notes: list[str],
) -> list[Result]:
    figures = outcomes.figures()
    intervals = bootstrap_intervals(outcomes, settings.resamples, settings.seed)
    missing = (float("nan"), float("nan"))
    names = sorted(figures, key=lambda name: name != benchmark.metric)
    return [
        Result(
            model=subject.name,
            benchmark=benchmark.name,
            task=benchmark.task,
            metric=name,
            value=figures[name],
            low=intervals.get(name, missing)[0],
            high=intervals.get(name, missing)[1],
            n=len(outcomes),
            seed=settings.seed,
            protocol=settings.protocol.name,
            changes=settings.changes(),
            head=head,
            dataset=_shown(benchmark),
            data_fingerprint=data.fingerprint,
            image_size=settings.size(subject.spec),
            num_parameters=subject.num_parameters,
            num_train=0 if data.train is None else len(data.train),
            notes=tuple(notes),
        )
        for name in names
    ]


def _shown(benchmark: Benchmark) -> str:
    """The data's name without the path of a local folder."""
    name = benchmark.test_name or benchmark.train_name
    return Path(name).name if name != DRAWN and Path(name).exists() else name
