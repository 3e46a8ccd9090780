"""The demo takes the idle cores of the machine, whatever launched it, unless the user has set OMP_NUM_THREADS."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from singer_hf.commands import demo


@pytest.fixture
def threads(monkeypatch):
    found = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(demo, "idle_cores", lambda: 4)
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return found


def launch(monkeypatch, environment, launcher="ACCELERATE_MIXED_PRECISION"):
    """As `accelerate launch` or `torchrun` does it, where the user's shell has this environment."""
    monkeypatch.setenv("OMP_NUM_THREADS", environment.get("OMP_NUM_THREADS", "1"))
    monkeypatch.setenv(launcher, "no")
    parent = SimpleNamespace(environ=lambda: environment)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))


def test_without_a_launcher_all_idle_cores_are_used(threads):
    demo.use_idle_cores()
    assert threads == [4]


@pytest.mark.parametrize("launcher", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
def test_a_launchers_single_thread_does_not_count(threads, monkeypatch, launcher):
    launch(monkeypatch, {}, launcher)
    demo.use_idle_cores()
    assert threads == [4]


@pytest.mark.parametrize("value", ["1", "3"])
@pytest.mark.parametrize("launched", [False, True])
def test_what_the_user_has_set_holds(threads, monkeypatch, value, launched):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    if launched:
        launch(monkeypatch, {"OMP_NUM_THREADS": value})
    demo.use_idle_cores()
    assert threads == []


def test_a_launcher_whose_environment_is_hidden_does_not_stop_the_demo(threads, monkeypatch):
    launch(monkeypatch, {})
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: None))
    demo.use_idle_cores()
    assert threads == [4]


@pytest.mark.parametrize(("cores", "busy", "expected"), [(2, 0, 2), (2, 30, 1), (2, 100, 1), (16, 50, 8), (64, 0, 8)])
def test_busy_cores_are_left_out(monkeypatch, cores, busy, expected):
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: busy)
    monkeypatch.setattr(demo, "count_cores", lambda: cores)
    assert demo.idle_cores() == expected
