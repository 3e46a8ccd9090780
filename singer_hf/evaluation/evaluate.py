"""The public function that evaluates models: any form of models, on benchmarks or own data."""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn

from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.catalog import ALL
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.benchmarks.protocols import get_protocol
from singer_hf.evaluation.benchmarks.run_settings import RunSettings
from singer_hf.evaluation.data_at_hand import at_hand
from singer_hf.evaluation.evaluate_models import evaluate_models, select_benchmarks
from singer_hf.evaluation.evaluation_results import EvaluationResults
from singer_hf.evaluation.given_models import given_models
from singer_hf.evaluation.metrics import TASK_METRICS
from singer_hf.evaluation.results.files import check_comparable, check_sources, read_results, write_results
from singer_hf.evaluation.results.result import Result

Model = nn.Module | str | os.PathLike
_DATA_FIELDS = ("config_name", "train_split", "test_split", "image_column", "target_column")
_DATA_FIELDS += ("num_classes", "ignore_values", "label_offset", "depth_scale")
_RUN_FIELDS = tuple(item.name for item in fields(RunSettings) if item.name not in ("protocol", "work_dir"))


def evaluate(
    models: Model | Sequence[Model],
    task_or_benchmark: str | Sequence[str],
    dataset: str | os.PathLike | DatasetDict | None = None,
    *,
    protocol: str | None = None,
    processor: Any = None,
    output_dir: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    adapter: str | os.PathLike | None = None,
    head_dataset: str | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    **settings: Any,
) -> EvaluationResults:
    """Evaluates the frozen features of models: linear probes, nearest neighbours, segmentation and depth.

    Args:
        models: A module, a local folder or a Hub id, or a list of these. A module stays as it is.
        task_or_benchmark: A task on ``dataset``: "classification", "knn", "segmentation" or "depth"; or the name of a
            benchmark or of a group of benchmarks, or a list of names (`singer-hf evaluate --list`). "all": every
            benchmark whose data is on this machine.
        dataset: Folder, Hub id or ``DatasetDict`` with both splits; for one benchmark another copy of its data, for
            several a folder with a folder of their names for some of them.
        protocol: "singer" or "dinov2"; None takes that of the benchmark.
        processor: Image processor for all models, or the folder or Hub id of one; None takes that of each model.
        output_dir: Folder for results, figures, cached features and unfinished fits; None keeps no files. Results of
            other models and benchmarks that it holds stay there.
        device: Torch device of a folder or Hub id; None takes a GPU if there is one. A module stays where it is.
        adapter: SiNGER adapter of the only model, a folder or Hub id; of a module attach it.
        head_dataset: Copy of ImageNet-1k for benchmarks that reuse its head.
        max_train_samples: Largest number of training images; the seed draws them.
        max_test_samples: Largest number of test images.
        **settings: Fields of :class:`RunSettings`, such as ``seed`` and ``num_epochs``, and of :class:`Benchmark` that
            describe the data, such as ``num_classes`` and ``target_column``.

    Returns:
        The results; ``save(folder)`` writes them. Benchmarks whose data cannot be reached are in ``missing``, with a
        warning; without one those that "all" leaves out.

    Raises:
        ValueError: If a name or a setting is unknown, or models and data do not fit.
        FileNotFoundError: If a model does not exist, or the data of no benchmark can be reached.
    """
    if unknown := sorted(set(settings) - {*_DATA_FIELDS, *_RUN_FIELDS}):
        raise ValueError(f"`settings` must be among {[*_DATA_FIELDS, *_RUN_FIELDS]}, got {unknown}")
    limits = {"max_train_samples": max_train_samples, "max_test_samples": max_test_samples}
    with _folder(output_dir) as folder, _named(dataset, folder) as name:
        overrides = {key: value for key, value in settings.items() if key in _DATA_FIELDS}
        benchmarks, skipped = _benchmarks(task_or_benchmark, name, overrides), []
        if ALL in _names(task_or_benchmark):
            benchmarks, skipped = at_hand(benchmarks, head_dataset)
        run = {key: value for key, value in settings.items() if key in _RUN_FIELDS}
        chosen = None if protocol is None else get_protocol(protocol)

        def settings_of(benchmark: Benchmark) -> RunSettings:
            return RunSettings(chosen or get_protocol(benchmark.protocol), folder / "work", **run)

        found = given_models(models, processor, device, adapter)
        results, missing = run_benchmarks(
            found, benchmarks, settings_of, folder, head_dataset_name=head_dataset, **limits
        )
        if not any(results.values()):
            raise FileNotFoundError("; ".join(missing))
        for text in missing:
            warnings.warn(text, stacklevel=2)
        rows = [item for items in results.values() for item in items]
        return EvaluationResults.of_folder(rows, folder, [*skipped, *missing])


def run_benchmarks(
    models: Mapping[str, EvaluatedModel],
    benchmarks: Sequence[Benchmark],
    settings_of: Callable[[Benchmark], RunSettings],
    folder: str | os.PathLike,
    **limits: Any,
) -> tuple[dict[str, list[Result]], list[str]]:
    """Evaluates models on benchmarks one after another, and writes what is there after each.

    Args:
        models: Name -> model.
        benchmarks: The benchmarks.
        settings_of: Benchmark -> settings of its run.
        folder: Folder for all files.
        **limits: Keyword arguments of :func:`singer_hf.evaluation.evaluate_models.evaluate_models`.

    Returns:
        Name of the model -> results; and for each benchmark whose data cannot be reached, what was tried.

    Raises:
        ValueError: If the folder holds results that cannot be read, or of other models on one of the benchmarks with
            other settings, or models and data do not fit.
    """
    results: dict[str, list[Result]] = {name: [] for name in models}
    missing, earlier = [], read_results(folder)
    check_sources(earlier, models.values())
    for benchmark in benchmarks:  # before any work
        settings = settings_of(benchmark)
        given = {"seed": settings.seed, "changes": settings.changes()}
        names = [evaluated.name for evaluated in models.values()]
        check_comparable(earlier, names, (benchmark.name, benchmark.task, settings.protocol.name), given)
    for benchmark in benchmarks:
        try:
            new = evaluate_models(models, benchmark, settings_of(benchmark), folder, **limits)
        except FileNotFoundError as error:
            missing.append(str(error))
            continue
        for name, items in new.items():
            results[name] += items
        write_results(folder, [item for items in new.values() for item in items])
    return results, missing


@contextmanager
def _folder(output_dir: str | os.PathLike | None) -> Iterator[Path]:
    if output_dir is not None:
        yield Path(output_dir)
        return
    with tempfile.TemporaryDirectory(prefix="singer_evaluate_") as folder:
        yield Path(folder)


@contextmanager
def _named(dataset: Any, folder: Path) -> Iterator[str | None]:
    """The data by a name: splits in memory are written to a folder while they are used."""
    if not isinstance(dataset, Mapping):
        yield None if dataset is None else os.fspath(dataset)
        return
    with tempfile.TemporaryDirectory(prefix="singer_data_") as place:
        copy = Path(place, "dataset")
        copy.mkdir()
        for split, rows in dataset.items():
            rows.to_parquet(copy / f"{split}.parquet")
        yield str(copy)


def _names(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _benchmarks(given: str | Sequence[str], dataset: str | None, overrides: dict[str, Any]) -> list[Benchmark]:
    names = _names(given)
    if len(names) == 1 and names[0] in TASK_METRICS:
        if dataset is None:
            raise ValueError(f"`dataset` must be given for the task {names[0]!r}: a folder, Hub id or DatasetDict")
        return select_benchmarks(None, task=names[0], dataset_name=dataset, overrides=overrides)
    return select_benchmarks(names, dataset_name=dataset, overrides=overrides)
