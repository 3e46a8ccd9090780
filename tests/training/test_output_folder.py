"""A run written over another one is never taken for it; checkpoints rotate by step, whatever the clock says."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import transformers as hf
from runs import files_in, make_resumable, make_trainer, small_student

from singer_hf.training.guards.complete import find_problem, last_complete_checkpoint
from singer_hf.training.guards.output_folder import remove_checkpoint, remove_earlier_run, rotate_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """A finished run of eight steps in learning rate 1e-3."""
    trainer = make_resumable(tmp_path_factory.mktemp("old"))
    trainer.train()
    trainer.save_model()
    return Path(trainer.args.output_dir)


class Killed(BaseException):
    """Stands for the end of the process."""


class KillAt(hf.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def test_a_run_killed_before_its_first_checkpoint_is_not_resumed_from_the_one_it_replaces(old_run, tmp_path):
    folder = shutil.copytree(old_run, tmp_path / "run")
    (folder / "notes.txt").write_text("the user's own")
    new = {"overwrite_output_dir": True, "learning_rate": 1e-4}
    with pytest.raises(Killed):
        make_resumable(folder, callbacks=[KillAt(1)], **new).train()
    assert files_in(folder) == {"notes.txt"}
    resumed = make_resumable(folder, **new)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 0


def test_a_checkpoint_of_which_one_file_was_removed_is_not_complete(old_run, tmp_path, monkeypatch):
    folder = shutil.copytree(old_run / "checkpoint-8", tmp_path / "checkpoint-8")
    assert find_problem(folder) is None

    def die(*args):
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(Killed):
        remove_checkpoint(folder)
    assert find_problem(folder).startswith("FileNotFoundError: ")


@pytest.mark.parametrize("kill_at", [0, 1, 5, 12, 30])
def test_a_kill_while_the_old_run_is_removed_leaves_nothing_to_resume(old_run, tmp_path, monkeypatch, kill_at):
    folder = shutil.copytree(old_run, tmp_path / "run")
    removed = []

    def deadly(remove):
        def call(*args, **kwargs):
            removed.append(args)
            if len(removed) > kill_at:
                raise Killed
            return remove(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", deadly(os.unlink))
        patch.setattr(Path, "unlink", deadly(Path.unlink))
        with pytest.raises(Killed):
            remove_earlier_run(folder)
    assert last_complete_checkpoint(folder) is None
    resumed = make_resumable(folder, max_steps=1, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 0
    assert files_in(folder) == set()


@pytest.mark.parametrize("moment", ["_save", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_checkpoint_half_written_over_does_not_pass_for_the_one_before(old_run, tmp_path, monkeypatch, moment):
    """A run taken up at step 4 that dies while it writes step 6 again."""
    folder = shutil.copytree(old_run, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-8")
    trainer = make_resumable(folder)

    def killed(*args, **kwargs):
        raise Killed

    monkeypatch.setattr(trainer, moment, killed)
    with pytest.raises(Killed):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-4")


def test_the_models_of_the_run_are_not_deleted_with_the_folder(tmp_path):
    small_student().save_pretrained(tmp_path)
    message = (
        "`output_dir` must not hold the models of the run with `overwrite_output_dir=True`: "
        f"{str(tmp_path)!r} would be deleted; use another folder"
    )
    trainer = make_trainer(tmp_path, model=str(tmp_path), overwrite_output_dir=True)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trainer.train()
    assert (tmp_path / "model.safetensors").exists()


class ClockBack(hf.TrainerCallback):
    """Gives every new checkpoint an earlier time than the one before."""

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        os.utime(folder, (1e9 - 100 * state.global_step,) * 2)


def test_the_latest_steps_stay_when_the_clock_runs_backwards(tmp_path):
    trainer = make_trainer(tmp_path, save_steps=1, save_total_limit=2, max_steps=5, callbacks=[ClockBack()])
    trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}
    assert json.loads((tmp_path / "checkpoint-5" / "training_args.json").read_text())["save_total_limit"] == 2


@pytest.mark.parametrize(
    ("step", "limit", "best", "kept"),
    [
        (10, 2, (), {9, 10, 12}),
        (10, 1, (), {10, 12}),
        (10, 1, (8,), {8, 10, 12}),
        (10, 2, (8,), {8, 10, 12}),
        (10, 3, (8,), {8, 9, 10, 12}),
        (10, 1, (8, 9), {8, 9, 10, 12}),
        (10, None, (), {8, 9, 10, 12}),
        (12, 1, (), {12}),
    ],
)
def test_rotation_keeps_the_last_and_the_best(tmp_path, step, limit, best, kept):
    """Step 12 was left by an interrupted run that is at step 10 again."""
    for number in (8, 9, 10, 12):
        (tmp_path / f"checkpoint-{number}").mkdir()
    rotate_checkpoints(tmp_path, step, limit, [str(tmp_path / f"checkpoint-{number}") for number in best])
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{number}" for number in kept}
