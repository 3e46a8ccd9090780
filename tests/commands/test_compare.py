"""The command `compare`: flags, files, messages, and that a repeated command makes nothing again."""

import json
import re
import sys

import pytest
import torch
from in_process import make_runner
from tiny_study import METHODS, write_study

from singer_hf.commands import compare as compare_command
from singer_hf.comparison import cells, runner
from singer_hf.comparison.study import read_study
from singer_hf.configs import COMPARISONS, shipped_files
from singer_hf.vit.loading import model_from_config
from singer_hf.vit.structure import view_vit

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

GRID = {"base": {"r": 4, "recipe": "paper"}, "init_scale": [1, -1], "info_weight": [0, 1]}


@pytest.fixture(scope="module")
def command():
    return compare_command


@pytest.fixture
def run(command, monkeypatch, capsys):
    """Runs the command in this process; returns its error message, or None."""
    torch.set_num_threads(1)
    monkeypatch.setattr("singer_hf.training.saving.save_run_figures", lambda *args: None)
    return make_runner(command, "compare.py", monkeypatch, capsys)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), methods=METHODS)


def not_again(*args, **options):
    raise AssertionError("made again")


def files_in(folder):
    return {path.name for path in folder.iterdir()}


def test_two_methods_and_two_seeds_make_a_report(run, file, capsys, monkeypatch):
    assert run(file) is None
    folder = file.parent / "straight"
    assert {"comparison.json", "comparison.md", "figures", "cells", "references"} <= files_in(folder)
    assert files_in(folder / "figures") == {"methods.png", "paired.png", "curves.png"}
    shown = capsys.readouterr().out
    assert f"2 methods x 2 seeds x 4 steps -> {folder}" in shown
    page = (folder / "comparison.md").read_text()
    assert page in shown
    assert f"- command: singer-hf compare {file.name}\n" in page
    assert re.search(r"^\| singer \|", page, re.MULTILINE)
    assert re.search(r"^\| unplanted teacher \|", page, re.MULTILINE)

    content = json.loads((folder / "comparison.json").read_text())
    assert [(cell["method"], cell["seed"]) for cell in content["cells"]] == [
        ("fitnet", 0),
        ("fitnet", 1),
        ("singer", 0),
        ("singer", 1),
    ]
    assert set(content["references"]) == {"teacher", "unplanted teacher"}
    assert content["step_costs"]["fitnet"] == 1.0
    assert content["summary"]["methods"]["singer"]["knn"]["seeds"] == [0, 1]
    assert set(content["facts"]) == {
        *("command", "teacher", "student", "images", "steps", "seeds", "hardware", "processes", "versions", "date"),
    }

    # The same command again: a new report of the same figures, nothing trained and no cost measured.
    monkeypatch.setattr(cells, "SingerDistillationTrainer", not_again)
    monkeypatch.setattr(runner, "step_costs", not_again)
    assert run(file) is None
    again = json.loads((folder / "comparison.json").read_text())
    assert {name: again[name] for name in again if name != "facts"} == {
        name: content[name] for name in content if name != "facts"
    }

    # A part of it: the cells that are there.
    assert run(file, "--methods", "singer", "--seeds", 1) is None
    part = json.loads((folder / "comparison.json").read_text())
    assert part["cells"] == [cell for cell in content["cells"] if (cell["method"], cell["seed"]) == ("singer", 1)]

    # Other settings in the same folder.
    assert "was made with other settings of the comparison (max_steps: 4, now 6)" in run(file, "--max_steps", 6)


def test_a_grid_is_drawn_as_a_map_of_what_was_made(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "step_costs", lambda study, num_steps: {})
    file = write_study(tmp_path, methods={"fitnet": {}}, grid=GRID, seeds=[0], max_steps=1, num_evaluations=0)
    assert run(file, "--methods", "fitnet") is None
    assert files_in(tmp_path / "straight" / "figures") == {"methods.png"}
    assert run(file, "--methods", "fitnet", "init_scale=1, info_weight=0") is None
    assert files_in(tmp_path / "straight" / "figures") == {"methods.png", "sweep.png"}


def test_a_student_without_a_class_token_is_compared_by_its_patches(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "step_costs", lambda study, num_steps: {})
    file = write_study(tmp_path, methods=METHODS, max_steps=1, num_evaluations=0)
    config = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps({**config, "model_type": "ijepa"}))
    assert run(file) is None
    content = json.loads((tmp_path / "straight" / "comparison.json").read_text())
    assert "probe_cls" not in content["cells"][0]["metrics"]
    assert files_in(tmp_path / "straight" / "figures") == {"methods.png", "paired.png"}
    assert "on linear probe, class token" not in (tmp_path / "straight" / "comparison.md").read_text()


@pytest.mark.parametrize("flags", [(), ("--seeds", 1)])
def test_without_a_file_the_command_says_what_it_needs(run, flags):
    message = "error: give the YAML file of a comparison first; `singer-hf --list` lists those of the package"
    assert run(*flags) == message


def test_a_study_that_is_not_there_is_refused_with_the_nearest_name(run):
    assert run("cifar10_planed") == (
        "error: `--config` must be a YAML file that exists or a name of the package, got 'cifar10_planed'; did you "
        "mean 'cifar10_planted'? `singer-hf --list` lists the names of the package"
    )


def test_flags_win_over_the_file(command, file, monkeypatch):
    flags = ["--output_dir", "o", "--seeds", "4", "5", "--methods", "singer", "--max_steps", "7"]
    places = ["--teacher_name_or_path", "t", "--clean_teacher_name_or_path", "c", "--dataset_name", "d"]
    monkeypatch.setattr(sys, "argv", ["compare.py", str(file), *flags, *places, "--num_processes", "2"])
    study, num_processes = command.parse(sys.argv[1:])
    assert (study.output_dir, study.seeds, list(study.methods), study.max_steps) == ("o", (4, 5), ["singer"], 7)
    assert (study.teacher_name_or_path, study.clean_teacher_name_or_path, study.dataset_name) == ("t", "c", "d")
    assert num_processes == 2
    assert command.facts(study, 2, [])["processes"] == "2"


def test_there_must_be_a_process(run, file):
    assert run(file, "--num_processes", 0) == "error: `--num_processes` must be at least 1, got 0"


@pytest.mark.parametrize("name", ["teacher_name_or_path", "student_config"])
def test_a_missing_model_is_named_before_the_first_cell(run, tmp_path, name):
    file = write_study(tmp_path, methods=METHODS, **{name: str(tmp_path / "none")})
    assert run(file).startswith(f"error: `{name}` must be a ")
    assert not (tmp_path / "straight").exists()


@pytest.mark.parametrize("config", shipped_files(COMPARISONS).values(), ids=lambda path: path.name)
def test_every_shipped_study_can_be_read_and_names_a_student_that_exists(config):
    study = read_study(config)
    assert study.baseline in study.methods
    assert view_vit(model_from_config(study.student_config)).num_blocks >= 2
