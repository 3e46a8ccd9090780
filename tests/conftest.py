"""Fixtures shared by all tests. Nothing here or in `zoo.py` touches the network."""

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The tests run side by side; more threads than cores would wait for one another. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Leaves what the libraries hold out of every later garbage collection, of which each training makes some."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Gives everything back to the collection at the end of the process."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests of the mark ``gpu`` where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """One distillation step of the released code on tiny random ViTs, as numbers."""
    return Path(__file__).parent / "golden"
