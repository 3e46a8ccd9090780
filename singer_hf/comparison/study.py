"""The definition of a comparison: one teacher, one student, one set of images, many methods and seeds."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from singer_hf.baselines.method import Method
from singer_hf.baselines.method_table import make_method, method_class
from singer_hf.baselines.recipes import recipe_settings
from singer_hf.comparison.study_values import check_fields, check_mapping, check_seeds, check_settings
from singer_hf.data.yaml_file import load_yaml
from singer_hf.evaluation.benchmarks.catalog import get_benchmark
from singer_hf.training.arguments import SingerTrainingArguments

# Shared by all methods and set by the study.
_SHARED = ("seed", "output_dir", "run_name", "max_steps", "num_train_epochs")
_GRID_NAMES = 2
_OF_ENTRIES = ("method", "teacher_name_or_path", "recipe")
_REQUIRED = ("teacher_name_or_path", "student_config", "dataset_name", "max_steps")
# Each method may have a learning rate that suits it; the images and their number are the same for all.
_OPTIMIZER = ("learning_rate", "adam_beta2", "max_grad_norm")


@dataclass(frozen=True)
class StudyMethod:
    """A method of a comparison: a row of its tables.

    Attributes:
        name: Name in tables.
        method: The method with its settings.
        training: Fields of SingerTrainingArguments that belong to it.
        teacher_name_or_path: A teacher of its own (one with trained registers, for example); None for the shared one.
    """

    name: str
    method: Method
    training: Mapping[str, Any] = field(default_factory=dict)
    teacher_name_or_path: str | None = None

    @classmethod
    def parse(cls, name: str, entry: Mapping[str, Any] | None) -> "StudyMethod":
        """Makes a method from its entry in the YAML file: ``method`` (default: its name), ``recipe``, and settings.

        Args:
            name: Name in tables.
            entry: The entry.

        Raises:
            ValueError: If a setting is unknown, does not belong to the method, or is out of its range.
        """
        entry = check_mapping(name, entry)
        kind, teacher = entry.get("method", name), entry.get("teacher_name_or_path")
        own = {key: value for key, value in entry.items() if key not in _OF_ENTRIES}
        try:
            check_settings(entry)
            method = method_class(kind)
            settings = (recipe_settings(entry["recipe"]) if "recipe" in entry else {}) | own
            names = {"method": method.setting_names(), "training": (*method.training_fields, *_OPTIMIZER)}
            if unknown := sorted(set(settings) - {*names["method"], *names["training"]}):
                raise ValueError(
                    f"{kind} does not take the settings {unknown}; it takes "
                    f"{sorted({*names['method'], *names['training']})}"
                )
            split = {part: {n: settings[n] for n in own if n in settings} for part, own in names.items()}
            SingerTrainingArguments(**split["training"])
            made = make_method(kind, split["method"])
            if unused := sorted(set(split["training"]) - {*made.used_fields, *_OPTIMIZER}):
                raise ValueError(f"{kind} with these settings does not use {unused}; leave them out")
            return cls(name, made, split["training"], teacher)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error


@dataclass(frozen=True)
class Study:
    """A comparison, with the fields of its YAML file.

    Attributes:
        teacher_name_or_path: The teacher that all methods distil from.
        student_config: Config of the student: JSON file, folder or Hub id. Weights are random, by the seed.
        dataset_name: Labelled images to distil and to probe on: a folder, a Hub id, or "drawn scenes".
        max_steps: Optimiser steps of every cell.
        methods: Name -> method, in the order of the tables.
        output_dir: Folder of everything that is written.
        seeds: Seeds of student, projectors, random directions and image order.
        baseline: The method that the others are compared with.
        clean_teacher_name_or_path: The teacher before artifacts were planted, where there is one.
        train_split: Split to distil on and to fit the probes on.
        test_split: Split that is measured.
        max_train_samples: Distil on a seeded subset of this size.
        max_probe_samples: Images of the training split that the probes are fitted on.
        max_test_samples: Images of the test split that are measured.
        num_calibration_images: Training images for `nullspace_source: jacobian` and for finding register neurons.
        num_evaluations: Evaluations while training, evenly spread, for the curves; 0 is off.
        num_cost_steps: Steps of every method that are timed for the table's costs; 0 is off.
        training: Fields of SingerTrainingArguments for all cells.
        benchmarks: Further benchmarks of :mod:`singer_hf.evaluation.benchmarks.catalog`: ``name`` and changed
            settings.
        grid: (rows, columns) of a sweep of two settings, each (name, values); None without one.
    """

    teacher_name_or_path: str
    student_config: str
    dataset_name: str
    max_steps: int
    methods: dict[str, StudyMethod]
    output_dir: str = "outputs/comparison"
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str = "fitnet"
    clean_teacher_name_or_path: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    max_train_samples: int | None = None
    max_probe_samples: int = 10_000
    max_test_samples: int | None = None
    num_calibration_images: int = 256
    num_evaluations: int = 4
    num_cost_steps: int = 30
    training: dict[str, Any] = field(default_factory=dict)
    benchmarks: tuple[dict[str, Any], ...] = ()
    grid: tuple[tuple[str, tuple], ...] | None = None

    def cells(self) -> list[tuple[str, int]]:
        """(method, seed) of all cells, seed by seed, so that an unfinished comparison compares what it has."""
        return [(method, seed) for seed in self.seeds for method in self.methods]


def read_study(file: str | Path, **overrides: Any) -> Study:
    """Reads a study from a YAML file.

    Args:
        file: The file.
        **overrides: Fields that win over the file; ``methods`` keeps those of that name. None leaves the file's.

    Raises:
        ValueError: If the file is no valid YAML, a name is unknown, missing or there twice, a value has the wrong
            type, or a method does not fit.
    """
    given = load_yaml(file)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    kept = overrides.pop("methods", None)
    given |= overrides
    known = {item.name for item in fields(Study)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{str(file)!r} has unknown names {unknown}; known are {sorted(known)}")
    if missing := [name for name in _REQUIRED if given.get(name) is None]:
        raise ValueError(f"{str(file)!r} must have {', '.join(missing)}")
    grid = check_mapping("grid", given.pop("grid", None))
    entries = check_mapping("methods", given.pop("methods", None)) | (_grid_entries(grid) if grid else {})
    check_fields(given, get_type_hints(Study))
    methods = {name: StudyMethod.parse(name, entry) for name, entry in entries.items()}
    if kept is not None:
        methods = {name: methods[name] for name in _checked_names(kept, methods)}
    return _checked(Study(**_plain(given), methods=methods, grid=_axes(grid) if grid else None))


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples where the study holds tuples."""
    return {name: tuple(value) if name in ("seeds", "benchmarks") else value for name, value in given.items()}


def _checked(study: Study) -> Study:
    if not study.methods:
        raise ValueError("`methods` must name at least one method")
    check_seeds(study.seeds)
    if study.max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {study.max_steps!r}")
    known = {item.name for item in fields(SingerTrainingArguments)} - set(_SHARED)
    if unknown := sorted(set(study.training) - known):
        raise ValueError(
            f"`training` must hold fields of SingerTrainingArguments other than {', '.join(_SHARED)}, got {unknown}"
        )
    try:
        check_settings(study.training)
    except ValueError as error:
        raise ValueError(f"`training`: {error}") from error
    for entry in study.benchmarks:
        get_benchmark(check_mapping("benchmarks", entry).get("name"))
    for name in study.methods:
        if "/" in name or name in (".", ".."):
            raise ValueError(f"names of methods are names of folders too, got {name!r}")
    return study


def _checked_names(names: list[str], methods: Mapping[str, Method]) -> list[str]:
    if unknown := [name for name in names if name not in methods]:
        raise ValueError(f"`methods` must be some of {list(methods)}, got {unknown}")
    return names


def _axes(grid: Mapping[str, Any]) -> tuple[tuple[str, tuple], ...]:
    swept = {name: values for name, values in grid.items() if name != "base"}
    if len(swept) != _GRID_NAMES:
        raise ValueError(f"`grid` must sweep two settings beside `base`, got {list(swept)}")
    for name, values in swept.items():
        if not isinstance(values, list):
            raise ValueError(f"`grid` must give a list of values for {name!r}, got {values!r}")
    return tuple((name, tuple(values)) for name, values in swept.items())


def grid_name(names: tuple[str, ...], values: tuple[Any, ...]) -> str:
    """Name of the method at one point of a grid."""
    return ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))


def _grid_entries(grid: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    names, values = zip(*_axes(grid), strict=True)
    base = {"method": "singer", **check_mapping("base", grid.get("base"))}
    points = itertools.product(*values)
    return {grid_name(names, point): base | dict(zip(names, point, strict=True)) for point in points}
