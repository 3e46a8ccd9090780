"""A folder that cannot be written to is noticed before the first step, not at the first checkpoint."""

import os
import tempfile

import pytest
from runs import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def assert_refused_at_the_start(folder, reason, **options):
    trainer = make_trainer(folder, **options)
    message = rf"^`output_dir` must be a folder that can be written to, got '.*': {reason}; change its permissions or "
    with pytest.raises(OSError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o555)
    assert_refused_at_the_start(folder, "Permission denied")


@pytest.mark.parametrize("options", [{}, {"overwrite_output_dir": True}])
def test_a_folder_on_a_read_only_disk(tmp_path, monkeypatch, options):
    def refuse(dir):
        assert dir == str(tmp_path)
        raise OSError(30, "Read-only file system", dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert_refused_at_the_start(tmp_path, "Read-only file system", **options)


def test_a_writable_folder_is_left_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path / "new", max_steps=1, save_strategy="no")
    trainer.train()
    assert list((tmp_path / "new").iterdir()) == []
