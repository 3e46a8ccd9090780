"""Fixtures shared by all tests. Nothing here or in `zoo.py` touches the network."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The tests run side by side; more threads than cores would wait for one another. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def golden() -> Path:
    """One distillation step of the released code on tiny random ViTs, as numbers."""
    return Path(__file__).parent / "golden"
