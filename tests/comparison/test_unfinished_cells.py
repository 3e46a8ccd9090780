"""An unfinished cell belongs to the settings it was started with, and is never finished with others."""

import json
import re
from dataclasses import replace

import pytest
from tiny_study import tiny_study, write_study

from singer_hf.comparison import cells, runner
from singer_hf.comparison.cell_folder import cell_folder, reference_folder
from singer_hf.comparison.cells import run_cell, run_reference
from singer_hf.training.trainer import SingerDistillationTrainer


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), max_steps=2, num_evaluations=1, seeds=[0])


def stop(*args, **options):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unfinished(file):
    """A cell that was stopped behind its training, before anything was measured."""
    study = tiny_study(file, "unfinished")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cells, "_measure", stop)
        patched.setattr("singer_hf.training.saving.save_run_figures", lambda *args: None)
        with pytest.raises(KeyboardInterrupt):
            run_cell(study, "fitnet", 0, quiet=True)
    assert not (cell_folder(study, "fitnet", 0).path / "result.json").exists()
    return study


def other_settings(folder, differences):
    message = f"{str(folder)!r} was made with other settings of the comparison ({differences}); take another "
    return pytest.raises(ValueError, match=f"^{re.escape(message)}")


CHANGES = [
    ({"max_steps": 3}, "max_steps: 2, now 3"),
    ({"training": {}}, "training: {'per_device_train_batch_size': 4}, now {}"),
    ({"max_probe_samples": 6}, "max_probe_samples: 10000, now 6"),
]


@pytest.mark.parametrize(("change", "differences"), CHANGES)
def test_other_settings_are_refused_by_name_and_nothing_is_touched(unfinished, monkeypatch, change, differences):
    monkeypatch.setattr(cells, "SingerDistillationTrainer", stop)
    folder = cell_folder(unfinished, "fitnet", 0).path
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with other_settings(folder, differences):
        run_cell(replace(unfinished, **change), "fitnet", 0)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_edited_config_of_the_student_is_another_setting(unfinished, file, tmp_path):
    config = json.loads((file.parent / "student.json").read_text())
    edited = tmp_path / "student.json"
    edited.write_text(json.dumps({**config, "hidden_dropout_prob": 0.5}))
    cell, other = (
        cell_folder(replace(unfinished, student_config=str(f)), "fitnet", 0)
        for f in (file.parent / edited.name, edited)
    )
    names = {name for name in cell.settings if cell.settings[name] != other.settings[name]}
    assert names == {"student_config", "digest of student_config"}


def test_the_settings_are_noted_before_the_training_begins(file, monkeypatch):
    study = tiny_study(file, "not_begun")
    monkeypatch.setattr(SingerDistillationTrainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        run_cell(study, "fitnet", 0, quiet=True)
    folder = cell_folder(study, "fitnet", 0).path
    assert not list(folder.rglob("checkpoint-*"))
    with other_settings(folder, "max_steps: 2, now 3"):
        run_cell(replace(study, max_steps=3), "fitnet", 0)


def test_work_of_unknown_settings_is_refused(file):
    """As a version wrote it that noted no settings."""
    study = tiny_study(file, "unknown")
    folder = cell_folder(study, "fitnet", 0).path
    (folder / "student" / "checkpoint-1").mkdir(parents=True)
    with other_settings(folder, "or by another version, there is no settings.json"):
        run_cell(study, "fitnet", 0)


def test_an_unfinished_reference_is_refused_too(file, monkeypatch):
    study = tiny_study(file, "reference")
    monkeypatch.setattr(cells, "probe_metrics", stop)
    with pytest.raises(KeyboardInterrupt):
        run_reference(study, "teacher", study.teacher_name_or_path)
    folder = reference_folder(study, "teacher", study.teacher_name_or_path).path
    with other_settings(folder, "max_probe_samples: 10000, now 6"):
        run_reference(replace(study, max_probe_samples=6), "teacher", study.teacher_name_or_path)


def test_a_comparison_with_other_settings_is_refused_before_anything_is_run(unfinished, monkeypatch):
    monkeypatch.setattr(runner, "run_reference", stop)
    monkeypatch.setattr(runner, "run_cell", stop)
    with other_settings(cell_folder(unfinished, "fitnet", 0).path, "max_steps: 2, now 3"):
        runner.run_study(replace(unfinished, max_steps=3))


def test_costs_of_steps_belong_to_their_settings_too(file, monkeypatch):
    study, measured = tiny_study(file, "costs", methods=["fitnet", "singer"]), []

    def measure(study, num_steps):
        measured.append(list(study.methods))
        return dict.fromkeys(study.methods, float(len(measured)))

    monkeypatch.setattr(runner, "step_costs", measure)
    (file.parent / "costs").mkdir()
    part = replace(study, methods={"fitnet": study.methods["fitnet"]}, seeds=(1,))
    assert runner._costs(study) == runner._costs(study) == {"fitnet": 1.0, "singer": 1.0}
    assert runner._costs(part) == {"fitnet": 1.0}
    assert runner._costs(replace(study, baseline="singer")) == {"fitnet": 2.0, "singer": 2.0}
    assert runner._costs(replace(study, max_steps=3)) == {"fitnet": 3.0, "singer": 3.0}
