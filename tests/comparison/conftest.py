"""Cells of a comparison are trained on one thread; pictures of a run are tested with the trainer."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_without_pictures(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr("singer_hf.training.saving.save_run_figures", lambda *args: None)
