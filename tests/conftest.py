"""Fixtures shared by all tests. Nothing here or in `zoo.py` touches the network."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def golden() -> Path:
    """One distillation step of the released code on tiny random ViTs, as numbers."""
    return Path(__file__).parent / "data" / "golden"
