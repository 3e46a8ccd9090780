"""Files of an evaluation, to which later evaluations add: results.json, results.md, metrics of each class."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from singer_hf.cards.student_card import library_versions
from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.metrics import greater_is_better, per_class_accuracy, per_class_iou
from singer_hf.evaluation.results.result import Result
from singer_hf.evaluation.results.tables import all_metrics_table, mean_values, metric_descriptions, results_table

RESULTS_FILE = "results.json"
_OTHER_LIBRARIES = ("torchvision", "scikit-learn", "numpy")


def read_results(folder: str | Path) -> list[Result]:
    """Reads the results that a folder holds; none if there is no ``results.json``.

    Args:
        folder: Folder of an evaluation.

    Raises:
        ValueError: If the file is damaged or not of an evaluation; it stays as it is.
    """
    file = Path(folder, RESULTS_FILE)
    if not file.is_file():
        return []
    try:
        return [_result(row) for row in json.loads(file.read_text(encoding="utf-8"))["results"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(file)!r} holds no results of an evaluation ({type(error).__name__}: {error}); move it away, or "
            "take another `output_dir`"
        ) from error


def write_results(folder: str | Path, results: Sequence[Result]) -> list[Result]:
    """Adds results to ``results.json`` and ``results.md`` in ``folder``; those of the same row are replaced.

    Args:
        folder: The folder; it is created if needed.
        results: New results.

    Returns:
        All results that the folder holds now.

    Raises:
        ValueError: If there are no results, or ``results.json`` cannot be read.
    """
    if not results:
        raise ValueError("`results` must hold at least one metric, got none")
    folder = Path(folder)
    results = merge_results(read_results(folder), results)
    rows = [
        {**asdict(result), "greater_is_better": greater_is_better(result.metric), "interval": "95 % bootstrap"}
        for result in results
    ]
    _write_json(folder / RESULTS_FILE, {"versions": versions(), "results": rows, "means": mean_values(results)})
    page = "\n\n".join((results_table(results), all_metrics_table(results), metric_descriptions(results)))
    _write(folder / "results.md", page)
    return results


def merge_results(old: Iterable[Result], new: Iterable[Result]) -> list[Result]:
    """Returns old and new results; new ones take the place of old ones of the same row.

    Args:
        old: Results that are there.
        new: Results that are added.
    """
    return [result for row in (_by_row(old) | _by_row(new)).values() for result in row]


def check_comparable(
    old: Iterable[Result],
    models: Iterable[str],
    column: tuple[str, str, str],
    settings: Mapping[str, Any],
) -> None:
    """Checks that new results may stand beside those of other models on the same benchmark.

    Args:
        old: Results that are there.
        models: Names of the models that are evaluated; their own earlier results are replaced.
        column: Benchmark, task and protocol.
        settings: Fields of :class:`Result` and their new values, which must be the old ones.

    Raises:
        ValueError: If they differ.
    """
    names = set(models)
    for result in old:
        if result.column != column or result.model in names:
            continue
        for name, value in settings.items():
            if (before := getattr(result, name)) != json.loads(json.dumps(value)):
                raise ValueError(
                    f"`output_dir` holds results of {result.model!r} on {column[0]!r} with {name} {before!r}, now it "
                    f"is {value!r}: one table would compare different settings; take another `output_dir`"
                )


def check_sources(old: Iterable[Result], models: Iterable[EvaluatedModel]) -> None:
    """Checks that no result would be replaced by one of another model that has the same name.

    Args:
        old: Results that are there.
        models: Models that are evaluated.

    Raises:
        ValueError: If there are results of another model with the name of one of these.
    """
    sources = {model.name: model.source for model in models}
    for result in old:
        new = sources.get(result.model)
        if new and result.source and new != result.source:
            raise ValueError(
                f"`output_dir` holds results of another model with the name {result.model!r}, from another folder; "
                "take another `output_dir`, or rename the model's folder"
            )


def write_per_class(
    folder: str | Path, benchmark: Benchmark, class_names: Sequence[str], confusions: Mapping[str, Tensor]
) -> None:
    """Writes ``per_class_<benchmark>.json``: the samples of each class and the accuracy, or IoU, of each model on it.

    Other models that the file has, on the same classes and samples, stay in it.

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
    file = Path(folder, f"per_class_{benchmark.name}.json")
    _write_json(file, [earlier | row for earlier, row in zip(_earlier_classes(file, rows), rows, strict=True)])


def versions() -> dict[str, str]:
    """Returns the versions of the libraries on which the metrics depend."""
    return {**library_versions(), **{name: version(name) for name in _OTHER_LIBRARIES}}


def _earlier_classes(file: Path, rows: list[dict]) -> list[dict]:
    """The rows of the file if they are of the same classes and samples, else empty ones."""
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        same = [(row["class"], row["n"]) for row in earlier] == [(row["class"], row["n"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    return earlier if same else [{} for _ in rows]


def _by_row(results: Iterable[Result]) -> dict[tuple, list[Result]]:
    rows: dict[tuple, list[Result]] = {}
    for result in results:
        rows.setdefault(result.row, []).append(result)
    return rows


def _result(row: dict) -> Result:
    values = {item.name: row[item.name] for item in fields(Result) if item.name in row}
    for name in ("value", "low", "high"):
        values[name] = float("nan") if values[name] is None else values[name]
    return Result(**values | {name: tuple(values[name]) for name in ("image_size", "notes")})


def _write_json(file: Path, value: Any) -> None:
    _write(file, json.dumps(_without_nan(value), indent=1, allow_nan=False))


def _write(file: Path, text: str) -> None:
    """Writes the whole file or, if that fails, nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(f"{text}\n", encoding="utf-8")
    os.replace(partial, file)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
