"""A run that is taken up again equals one that was never interrupted, bit for bit, also after `kill -9`."""

import json
import logging
import re
import shutil
import signal
from pathlib import Path

import pytest
from runs import StopAt, differing, image_dataset, make_resumable, snapshot, start_script

from singer_hf.training.guards.complete import last_complete_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

SHARE = {"info_share": 0.5, "num_artifact_images": 2}
EMA = {"ema_decay": 0.9, "bf16": True, "gradient_accumulation_steps": 2}
COMPONENTS = ("loss", "kd_loss", "outlier_loss", "info_loss", "grad_norm", "learning_rate", "epoch")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Eight steps without an interruption."""
    trainer = make_resumable(tmp_path_factory.mktemp("straight"))
    trainer.train()
    return trainer


def rows(trainer):
    history = trainer.state.log_history
    return [{name: row[name] for name in COMPONENTS if name in row} for row in history if "loss" in row]


def assert_same(resumed, straight):
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()
    assert differing(snapshot(resumed.student), snapshot(straight.student)) == set()
    assert rows(resumed) == rows(straight)


def test_stopped_and_resumed_equals_straight(straight, tmp_path):
    """20 images in batches of 4: the checkpoint of step 4 lies within the first epoch of two."""
    make_resumable(tmp_path, callbacks=[StopAt(4)]).train()
    resumed = make_resumable(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, straight)


def test_killed_in_mid_step_and_resumed_with_other_workers_equals_straight(straight, tmp_path):
    """Killed in the seventh step; checkpoints were written after every second one."""
    process = start_script("killed_run.py", tmp_path, 7)
    process.communicate(timeout=180)
    assert process.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    resumed = make_resumable(tmp_path, dataloader_num_workers=2)
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, straight)


@pytest.mark.parametrize("case", ["running average", "streaming", "bare teacher", "share of L_info"])
def test_other_runs_resume_bit_for_bit(case, tmp_path):
    def make(folder, **options):
        stream = {"train_dataset": image_dataset(20).to_iterable_dataset(num_shards=2)}
        settings = {"running average": EMA, "streaming": stream, "bare teacher": {"bare": True}}
        settings = {**settings, "share of L_info": SHARE}[case]
        return make_resumable(folder, max_steps=4, **settings, **options)

    straight = make(tmp_path / "straight")
    straight.train()
    make(tmp_path / "stopped", callbacks=[StopAt(2)]).train()
    resumed = make(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    assert_same(resumed, straight)


@pytest.mark.parametrize("max_steps", [8, 10])
def test_a_finished_run_that_is_resumed_is_not_trained_on(straight, tmp_path, max_steps):
    """8 steps end within an epoch of 5, 10 at its end."""
    finished = straight
    if max_steps == 10:
        finished = make_resumable(tmp_path, max_steps=10)
        finished.train()
    resumed = make_resumable(finished.args.output_dir, max_steps=max_steps)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == max_steps
    assert_same(resumed, finished)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    "state cut": (lambda folder: cut(folder / "trainer_state.json"), "JSONDecodeError: "),
    "state missing": (lambda folder: (folder / "trainer_state.json").unlink(), "FileNotFoundError: "),
    "student cut": (lambda folder: cut(folder / "model.safetensors"), "SafetensorError: "),
    "student missing": (lambda folder: (folder / "model.safetensors").unlink(), "weights are missing"),
    "projectors cut": (lambda folder: cut(folder / "projectors/model.safetensors"), "SafetensorError: "),
    "projectors missing": (lambda folder: (folder / "projectors/model.safetensors").unlink(), "weights are missing"),
    "adapter cut": (lambda folder: cut(folder / "singer/adapter_model.safetensors"), "SafetensorError: "),
    "optimizer empty": (lambda folder: (folder / "optimizer.pt").write_bytes(b""), "ValueError: optimizer.pt is cut "),
    "optimizer cut": (lambda folder: cut(folder / "optimizer.pt"), "ValueError: optimizer.pt is cut or damaged "),
    "optimizer missing": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer* missing"),
    "scheduler cut": (lambda folder: cut(folder / "scheduler.pt"), "ValueError: scheduler.pt is cut or damaged "),
    "scheduler missing": (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt missing"),
    "rng cut": (lambda folder: cut(folder / "rng_state.pth"), "ValueError: rng_state.pth is cut or damaged "),
    "rng missing": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state*.pth missing"),
    "config cut": (lambda folder: cut(folder / "config.json"), "JSONDecodeError: "),
    "config missing": (lambda folder: (folder / "config.json").unlink(), "FileNotFoundError: "),
    "folder only": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "FileNotFoundError: "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_checkpoint_is_skipped_with_a_message(straight, tmp_path, caplog, damage):
    shutil.copytree(straight.args.output_dir, tmp_path, dirs_exist_ok=True)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    destroy, reason = DAMAGES[damage]
    destroy(tmp_path / "checkpoint-8")
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    start = f"skipping the incomplete checkpoint {tmp_path / 'checkpoint-8'}: {reason}"
    assert [record.getMessage().startswith(start) for record in caplog.records] == [True]


def test_training_goes_on_from_the_checkpoint_before_a_half_written_one(straight, tmp_path):
    shutil.copytree(straight.args.output_dir, tmp_path, dirs_exist_ok=True)
    cut(tmp_path / "checkpoint-8" / "trainer_state.json")
    resumed = make_resumable(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, straight)
    assert json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())["global_step"] == 8


@pytest.mark.parametrize("killed", [False, True], ids=["first start", "killed in the first save"])
def test_resuming_without_a_complete_checkpoint_begins_the_run_and_says_so(straight, tmp_path, caplog, killed):
    if killed:
        shutil.copytree(Path(straight.args.output_dir) / "checkpoint-2", tmp_path / "checkpoint-2")
        (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
        (tmp_path / "checkpoint-2" / "left.over").touch()
    resumed = make_resumable(tmp_path)
    with caplog.at_level(logging.WARNING, "singer_hf"):
        resumed.train(resume_from_checkpoint=True)
    assert f"no complete checkpoint in {tmp_path}: the run begins at its first step" in caplog.messages
    assert_same(resumed, straight)
    assert not (tmp_path / "checkpoint-2" / "left.over").exists()


def test_a_plain_start_passes_over_a_checkpoint_that_was_not_written_to_its_end(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    make_resumable(tmp_path, max_steps=1).train()


def test_a_finished_run_without_checkpoints_is_not_begun_again(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"student")
    message = (
        f"`output_dir` must not hold another run, {str(tmp_path)!r} has model.safetensors. Use another folder, or set "
        "`overwrite_output_dir=True`"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_resumable(tmp_path).train(resume_from_checkpoint=True)


def test_an_incomplete_checkpoint_that_is_named_is_refused(straight, tmp_path):
    folder = shutil.copytree(Path(straight.args.output_dir) / "checkpoint-2", tmp_path / "checkpoint-2")
    (folder / "optimizer.pt").unlink()
    message = f"`resume_from_checkpoint` must be a complete checkpoint, {str(folder)!r} is not: optimizer* missing"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_resumable(tmp_path).train(resume_from_checkpoint=str(folder))


def test_checkpoints_without_an_optimiser_are_not_resumed_from(tmp_path):
    with pytest.raises(ValueError, match="`save_only_model` must be off to resume"):
        make_resumable(tmp_path, save_only_model=True).train(resume_from_checkpoint=True)
