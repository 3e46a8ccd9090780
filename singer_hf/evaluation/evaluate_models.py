"""Several models on one benchmark: runs, files and figures."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import load_benchmark, with_folder
from singer_hf.evaluation.benchmarks.catalog import ALL, expand_groups, get_benchmark
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.benchmarks.run import reused_head, run_benchmark
from singer_hf.evaluation.benchmarks.run_settings import RunSettings
from singer_hf.evaluation.data_at_hand import with_folders
from singer_hf.evaluation.figures import save_figures
from singer_hf.evaluation.results.files import check_comparable, read_results, write_per_class
from singer_hf.evaluation.results.result import Result


def select_benchmarks(
    names: Sequence[str] | None,
    *,
    task: str | None = None,
    dataset_name: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> list[Benchmark]:
    """Returns the benchmarks to run.

    Args:
        names: Names of benchmarks and groups; None makes a benchmark of ``task`` and ``dataset_name``.
        task: Task on ``dataset_name``; with ``names`` only "knn", which replaces linear heads by nearest neighbours.
        dataset_name: Folder or Hub id of the data; for several benchmarks a folder with a folder for each.
        overrides: Fields of :class:`Benchmark` with another value.

    Raises:
        ValueError: If a name is unknown or the arguments do not fit together.
    """
    overrides = dict(overrides or {})
    if not names:
        own = Benchmark(Path(dataset_name).name, task, dataset_name, image_column=None, target_column=None)
        return [replace(own, **overrides)]
    benchmarks = [get_benchmark(name) for name in expand_groups(names)]
    if len(benchmarks) > 1 and overrides:
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in overrides)} must be left out for several benchmarks, got "
            f"{len(benchmarks)}"
        )
    if dataset_name:
        several = len(benchmarks) > 1
        benchmarks = with_folders(benchmarks, dataset_name) if several else [with_folder(*benchmarks, dataset_name)]
    if task == "knn":
        overrides["task"] = "knn"
        if ALL in names:
            benchmarks = [item for item in benchmarks if item.task == "classification"]
        if wrong := [item.name for item in benchmarks if item.task != "classification"]:
            raise ValueError(f"`--task knn` needs benchmarks of classification, got {wrong[0]!r}")
    return [replace(benchmark, **overrides) for benchmark in benchmarks]


def evaluate_models(
    models: Mapping[str, EvaluatedModel],
    benchmark: Benchmark,
    settings: RunSettings,
    folder: str | Path,
    *,
    head_dataset_name: str | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
) -> dict[str, list[Result]]:
    """Evaluates models on a benchmark; writes the metrics of each class and the figures.

    Args:
        models: Name -> model.
        benchmark: The benchmark.
        settings: Settings of the run.
        folder: Folder for ``per_class_*.json`` and ``figures/``.
        head_dataset_name: Copy of the data for a head that the benchmark reuses.
        max_train_samples: Largest number of training images.
        max_test_samples: Largest number of test images.

    Returns:
        Name of the model -> results.

    Raises:
        FileNotFoundError: If the data cannot be reached.
        ValueError: If data, labels and models do not fit, or the folder holds results of other models on this
            benchmark with other settings.
    """
    limits = {"max_train_samples": max_train_samples, "max_test_samples": max_test_samples}
    data, runs = load_benchmark(benchmark, seed=settings.seed, **limits), {}
    earlier, column = read_results(folder), (benchmark.name, benchmark.task, settings.protocol.name)
    check_comparable(
        *(earlier, [item.name for item in models.values()], column),
        {"seed": settings.seed, "changes": settings.changes(), "data_fingerprint": data.fingerprint},
    )
    for name, evaluated in models.items():
        print(f"{benchmark.name}: {evaluated.name}, {settings.protocol.name} protocol, {len(data.test)} test images")
        head = reused_head(
            evaluated, benchmark, settings, dataset_name=head_dataset_name, max_train_samples=max_train_samples
        )
        runs[name] = run_benchmark(evaluated, benchmark, data, settings, head)
    confusions = {run.results[0].model: run.confusion for run in runs.values() if run.confusion is not None}
    if confusions:
        write_per_class(folder, benchmark, data.class_names, confusions)
    if importlib.util.find_spec("matplotlib") is None:
        print("no figures: matplotlib is not installed (pip install 'singer-hf[plots]')")
    else:
        others = [result for result in earlier if result.column == column and result.is_main]
        shown = (data.class_names, [*runs.values()], settings.protocol.max_depth, others)
        save_figures(Path(folder, "figures"), benchmark, *shown)
    return {name: run.results for name, run in runs.items()}
