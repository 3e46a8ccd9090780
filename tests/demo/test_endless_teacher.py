"""`examples/train_teacher.py` with endless scenes, mixing and the log of artifacts."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from runs import differing
from safetensors.torch import load_file
from tiny_study import STUDENT, save_images

from singer_hf.data.endless.scenes import CLASS_NAMES, draw_endless_scenes
from singer_hf.demo.teacher_trainer import TeacherTrainer

SCRIPT = str(Path(__file__).parents[2] / "examples" / "train_teacher.py")
TRAINING = ("--per_device_train_batch_size", 8, "--max_steps", 6, "--save_steps", 2, "--max_test_samples", 10)
MIXING = ("--mixup_alpha", 0.8, "--cutmix_alpha", 1, "--artifact_log_steps", 2)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; what it printed."""
    torch.set_num_threads(1)

    def run(*flags):
        quiet = ("--use_cpu", "--report_to", "none", "--disable_tqdm", True, "--planted_share", 0)
        monkeypatch.setattr(sys, "argv", ["train_teacher.py", *map(str, (*flags, *quiet))])
        runpy.run_path(SCRIPT, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "config.json"
    file.write_text(json.dumps({**STUDENT, "num_hidden_layers": 2, "intermediate_size": 33}))
    return file


def flags(config, folder, *more):
    return ("--dataset_name", "endless scenes", "--teacher_config", config, "--output_dir", folder, *TRAINING, *more)


def weights(folder):
    return load_file(folder / "unplanted" / "model.safetensors")


def test_a_run_says_that_its_data_are_synthetic_and_writes_the_log(run, config, tmp_path):
    printed = run(*flags(config, tmp_path, *MIXING, "--saved_scenes", 4, "--logging_steps", 1))
    told = json.loads((tmp_path / "teacher.json").read_text())
    assert printed.startswith("SYNTHETIC")
    assert told["data"].startswith("SYNTHETIC")
    assert [(row["step"], row["image_views"]) for row in told["artifacts"]] == [(2, 16), (4, 32), (6, 48)]
    log = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "artifacts.png").is_file() == bool(importlib.util.find_spec("matplotlib"))
    classes = json.loads((tmp_path / "unplanted" / "config.json").read_text())["id2label"]
    assert tuple(classes.values()) == CLASS_NAMES
    saved = load_from_disk(tmp_path / "scenes")
    assert {split: len(rows) for split, rows in saved.items()} == {"train": 4, "test": 10}
    assert saved["train"]["label"] == draw_endless_scenes(torch.arange(4), seed=84, size=16)[1].tolist()
    assert saved["test"]["label"] == draw_endless_scenes(torch.arange(10), seed=85, size=16)[1].tolist()


def test_a_killed_run_is_resumed_bit_for_bit(run, config, tmp_path, monkeypatch):
    run(*flags(config, tmp_path / "straight", *MIXING))
    training_step, steps = TeacherTrainer.training_step, []

    def killed(self, *args):
        steps.append(self.state.global_step)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return training_step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(*flags(config, tmp_path / "resumed", *MIXING))
    # A kill within the next checkpoint leaves a folder without the state file.
    (tmp_path / "resumed" / "checkpoint-5").mkdir()
    assert not (tmp_path / "resumed" / "unplanted").exists()
    run(*flags(config, tmp_path / "resumed", *MIXING), "--resume", True)
    assert differing(weights(tmp_path / "resumed"), weights(tmp_path / "straight")) == set()
    logs = [
        json.loads((tmp_path / name / "teacher.json").read_text())["artifacts"] for name in ("straight", "resumed")
    ]
    assert logs[0] == logs[1]


def test_every_step_draws_the_next_scenes(run, config, tmp_path, monkeypatch):
    training_step, seen = TeacherTrainer.training_step, []

    def watched(self, model, inputs, *args):
        seen.append(inputs["index"].tolist())
        return training_step(self, model, inputs, *args)

    monkeypatch.setattr(TeacherTrainer, "training_step", watched)
    run(*flags(config, tmp_path, "--gradient_accumulation_steps", 2))
    assert seen == [list(range(start, start + 8)) for start in range(0, 96, 8)]


def test_stored_images_are_mixed_too(run, config, tmp_path):
    save_images(tmp_path / "images")
    source = ("--dataset_name", tmp_path / "images", "--teacher_config", config, *TRAINING)
    for name, mixing in (("mixed", MIXING), ("again", MIXING), ("plain", ())):
        run(*source, "--output_dir", tmp_path / name, *mixing)
    assert differing(weights(tmp_path / "again"), weights(tmp_path / "mixed")) == set()
    assert differing(weights(tmp_path / "plain"), weights(tmp_path / "mixed"))
    assert set(json.loads((tmp_path / "plain" / "teacher.json").read_text())) == {"command", "unplanted"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--max_steps", -1),
            "`--max_steps` must be 1 or more with `--dataset_name 'endless scenes'`, got -1; endless scenes have no "
            "epochs",
        ),
        (("--mixup_alpha", -0.5), "`--mixup_alpha` must be 0 or more, got -0.5; 0 turns it off"),
        (("--cutmix_alpha", "nan"), "`--cutmix_alpha` must be 0 or more, got nan; 0 turns it off"),
        (("--artifact_log_steps", -1), "`--artifact_log_steps` must be 0 or more, got -1; 0 turns it off"),
        (
            ("--dataset_name", "images", "--saved_scenes", 3),
            "`--saved_scenes` must be 0 with stored images, got 3; it belongs to `--dataset_name 'endless scenes'`",
        ),
    ],
)
def test_bad_flags_are_refused_before_anything_is_drawn(run, config, tmp_path, more, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        run(*flags(config, tmp_path / "none", *more))
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
    assert not (tmp_path / "none").exists()
