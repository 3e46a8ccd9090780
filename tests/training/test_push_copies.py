"""The copies of checkpoints that are being uploaded: they take no space, need no TMPDIR and do not stay."""

import errno
import logging
import os
import shutil
from concurrent.futures import Future
from typing import ClassVar

import pytest
from runs import make_trainer

from singer_hf.training import hub

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


class Hub:
    """Stands for `HfApi`: takes a folder and is done when the test says so."""

    uploads: ClassVar[list] = []

    def upload_folder(self, **options):
        self.uploads.append((options, Future()))
        return self.uploads[-1][1]


@pytest.fixture
def uploads(monkeypatch):
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "uploads", [])
    return Hub.uploads


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def run(folder, monkeypatch, **options):
    trainer = make_trainer(folder, max_steps=2, hub_strategy="every_save", license="apache-2.0", **options)
    trainer.hub_model_id, trainer.push_in_progress = "someone/student", None
    monkeypatch.setattr(trainer.args, "push_to_hub", True)
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()


def test_a_push_copies_by_links_beside_the_checkpoint_and_cleans_up(tmp_path, monkeypatch, uploads):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    run(tmp_path, monkeypatch)
    options, job = uploads[0]
    copy = options["folder_path"]
    assert os.path.dirname(copy) == str(tmp_path)
    assert os.path.basename(copy).startswith("_push-")
    assert os.path.samefile(f"{copy}/model.safetensors", tmp_path / "checkpoint-2" / "model.safetensors")
    shutil.rmtree(tmp_path / "checkpoint-2")  # rotated away
    assert os.path.getsize(f"{copy}/model.safetensors") > 0
    job.set_result(None)
    assert not os.path.exists(copy)


def test_a_disk_without_room_for_the_copy_does_not_end_the_training(tmp_path, monkeypatch, uploads, caplog):
    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("shutil.copy2", full)
    with caplog.at_level(logging.WARNING, "singer_hf"):
        run(tmp_path, monkeypatch)
    assert uploads == []
    (message,) = caplog.messages
    assert message.startswith(f"the upload of {tmp_path / 'checkpoint-2'} failed (")
    assert message.endswith(f"training goes on. By hand: hf upload someone/student {tmp_path / 'checkpoint-2'}")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2"}


def test_without_hard_links_the_files_are_copied(tmp_path, monkeypatch, uploads):
    monkeypatch.setattr("os.link", full)
    run(tmp_path, monkeypatch)
    copy = uploads[0][0]["folder_path"]
    assert not os.path.samefile(f"{copy}/model.safetensors", tmp_path / "checkpoint-2" / "model.safetensors")


def test_the_copies_of_a_killed_run_are_removed_at_the_next_start(tmp_path, monkeypatch, uploads):
    run(tmp_path, monkeypatch)
    assert list(tmp_path.glob("_push-*"))
    make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)
    assert not list(tmp_path.glob("_push-*"))
