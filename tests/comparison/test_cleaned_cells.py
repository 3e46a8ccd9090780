"""A cleaned teacher as a method of a comparison: its entry, its cell, and the digest of its adapter."""

import re
from dataclasses import replace

import pytest
from adapters import attach
from labelled import tiny_model
from tiny_study import tiny_study, write_study
from transformers import AutoModel

from singer_hf.baselines.cleaned import Cleaned
from singer_hf.comparison.cell_folder import cell_folder
from singer_hf.comparison.cells import run_cell
from singer_hf.comparison.costs import step_costs
from singer_hf.comparison.study import StudyMethod

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    entry = {"adapter_name_or_path": str(root / "cleaned")}
    methods = {"fitnet": {}, "cleaned": entry, "trained_on": {**entry, "method": "cleaned", "train_adapter": True}}
    file = write_study(root, methods=methods)
    attach(AutoModel.from_pretrained(root / "planted"), layers_to_transform=[1]).save_pretrained(root / "cleaned")
    return file


def test_a_cell_is_trained_and_measured(file):
    study = tiny_study(file, "cells", seeds=[0])
    results = {method: run_cell(study, method, 0, quiet=True)["metrics"] for method in study.methods}
    refined = {"refined_outlier_ratio", "leakage", "e_prob", "e_safe"}
    for method in ("cleaned", "trained_on"):
        assert set(results[method]) - set(results["fitnet"]) == refined
        assert (cell_folder(study, method, 0).path / "student/singer/adapter_model.safetensors").is_file()
    assert results["cleaned"] != results["trained_on"]
    assert results["cleaned"]["refined_outlier_ratio"] != results["trained_on"]["refined_outlier_ratio"]


def test_the_cost_of_a_step_is_measured(file):
    assert set(step_costs(tiny_study(file, "costs"), num_steps=2, warmup=1)) == {"fitnet", "cleaned", "trained_on"}


def test_a_cell_belongs_to_its_adapter(file, tmp_path):
    def folder(**changes):
        study = tiny_study(file, "digests")
        entry = replace(study.methods["cleaned"], method=Cleaned(**changes))
        return cell_folder(replace(study, methods={"cleaned": entry}), "cleaned", 0)

    for name in ("one", "two"):
        attach(tiny_model(), layers_to_transform=[1]).save_pretrained(tmp_path / name)
    before = folder(adapter_name_or_path=str(tmp_path / "one"))
    others = [
        folder(adapter_name_or_path=str(tmp_path / "two")),
        folder(adapter_name_or_path=str(tmp_path / "one"), train_adapter=True),
        folder(adapter_name_or_path="user/adapter"),
    ]
    attach(tiny_model(), layers_to_transform=[1], init_seed=1).save_pretrained(tmp_path / "one")
    after = folder(adapter_name_or_path=str(tmp_path / "one"))
    assert len({cell.digest for cell in (before, after, *others)}) == 5
    changed = {name for name, value in before.settings.items() if after.settings[name] != value}
    assert changed == {"digest of the adapter"}


def test_an_entry_says_what_it_must_and_nothing_without_a_meaning():
    adapter = {"adapter_name_or_path": "outputs/cleaned"}
    frozen = StudyMethod.parse("cleaned", {**adapter, "teacher_layers": [3], "learning_rate": 0.1})
    assert frozen.method == Cleaned("outputs/cleaned")
    assert frozen.training == {"teacher_layers": [3], "learning_rate": 0.1}
    trained = StudyMethod.parse("on", {**adapter, "method": "cleaned", "train_adapter": True, "outlier_weight": 2.0})
    assert (trained.method, trained.training) == (Cleaned("outputs/cleaned", True), {"outlier_weight": 2.0})
    for entry, message in (
        (
            {},
            "'cleaned': `adapter_name_or_path` must name the adapter of the cleaned teacher, a folder or a Hub id, "
            "got None",
        ),
        (
            {**adapter, "outlier_weight": 2.0},
            "'cleaned': cleaned with these settings does not use ['outlier_weight']; leave them out",
        ),
        ({**adapter, "train_adapter": "on"}, "'cleaned': `train_adapter` must be true or false, got 'on'"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            StudyMethod.parse("cleaned", entry)
