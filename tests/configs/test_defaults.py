"""No file of the package repeats a default."""

from dataclasses import MISSING, fields

import pytest

from singer_hf import SingerConfig, SingerTrainingArguments
from singer_hf.baselines.recipes import RECIPES
from singer_hf.commands.distill_flags import ScriptArguments
from singer_hf.comparison.study import Study
from singer_hf.configs import COMPARISONS, RUNS, shipped_files
from singer_hf.data.yaml_file import load_yaml


def defaults(*kinds):
    """Default by name, in the form in which a YAML file has it."""
    values = {}
    for item in (item for kind in kinds for item in fields(kind)):
        if item.default is not MISSING or item.default_factory is not MISSING:
            value = item.default_factory() if item.default is MISSING else item.default
            values[item.name] = list(value) if isinstance(value, tuple) else value
    return values


def repeated(settings, known):
    return sorted(name for name, value in settings.items() if name in known and known[name] == value)


@pytest.mark.parametrize("file", shipped_files(RUNS).values(), ids=lambda file: file.stem)
def test_a_run_repeats_no_default(file):
    settings = load_yaml(file)
    known = defaults(ScriptArguments, SingerTrainingArguments, SingerConfig) | RECIPES.get(settings.get("recipe"), {})
    assert repeated(settings, known) == []


@pytest.mark.parametrize("file", shipped_files(COMPARISONS).values(), ids=lambda file: file.stem)
def test_a_comparison_repeats_no_default(file):
    assert repeated(load_yaml(file), defaults(Study)) == []
