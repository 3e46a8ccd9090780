"""Two runs in one folder at once are refused; the lock of a dead process holds nobody up."""

import os
import re
import socket

import pytest
from runs import files_in, make_trainer

from singer_hf.training.guards.lock import LOCK_FILE, run_lock

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    message = (
        f"`output_dir` must be used by one run at a time, {str(tmp_path)!r} is in use by process {os.getpid()} on "
        f"{socket.gethostname()}; wait for the end of that run, stop it, or use another folder"
    )
    with run_lock(tmp_path):
        for options in ({}, {"overwrite_output_dir": True}):
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                make_trainer(tmp_path, **options).train()
        assert files_in(tmp_path) == {LOCK_FILE}
    make_trainer(tmp_path, max_steps=1).train()


def test_the_lock_goes_with_the_run_also_when_it_fails(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.compute_loss = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert LOCK_FILE not in files_in(tmp_path)


def test_the_lock_file_of_a_dead_process_is_taken_over(tmp_path):
    """That of a run ended by `kill -9` is in test_resume.py: it is resumed at once."""
    (tmp_path / LOCK_FILE).write_text("process 1 on another host\n")
    make_trainer(tmp_path, max_steps=1).train()
    assert LOCK_FILE not in files_in(tmp_path)
