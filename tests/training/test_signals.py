"""SIGTERM and Ctrl-C save a checkpoint, say so in one line and end the process; nothing is published."""

import os
import signal
import sys

import pytest
import transformers as hf
from runs import differing, make_resumable, make_trainer, snapshot, start_script, training_rows

from singer_hf.training.guards.signals import StopSignals

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


class SignalAt(hf.TrainerCallback):
    """Sends a signal to this process within a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Eight steps without an interruption."""
    trainer = make_resumable(tmp_path_factory.mktemp("straight"))
    trainer.train()
    return trainer


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_run_stopped_by_a_signal_and_resumed_equals_straight(straight, tmp_path, name, code):
    """The signal reaches the data workers too; the fifth step is no step of a save."""
    process = start_script("killed_run.py", tmp_path / "run", 5, name)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == code, stderr
    checkpoint = tmp_path / "run" / "checkpoint-5"
    line = f"{name}: saved {checkpoint}; the same command with --resume goes on from there"
    assert [row for row in stderr.splitlines() if name in row] == [line]
    assert "Traceback" not in stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = make_resumable(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 5
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()
    assert [row["loss"] for row in training_rows(resumed)] == [row["loss"] for row in training_rows(straight)]


def test_the_step_of_the_signal_is_evaluated_before_the_end(tmp_path):
    """The resumed run would not do it again, and the best checkpoint could be another one."""
    values = iter([0.5, 0.9, 0.1])
    evaluator = {"evaluators": [lambda student: {"score": next(values)}], "save_strategy": "best", "eval_steps": 1}
    best = {"eval_strategy": "steps", "metric_for_best_model": "score", "greater_is_better": True}
    data = {"eval_dataset": make_trainer(tmp_path / "other").train_dataset}
    trainer = make_trainer(tmp_path / "run", callbacks=[SignalAt(3, signal.SIGTERM)], **evaluator, **best, **data)
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    assert stopped.value.code == 143
    assert trainer.state.best_global_step == 2
    assert [row["eval_score"] for row in trainer.state.log_history if "eval_score" in row] == [0.5, 0.9, 0.1]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
    ]


def test_a_checkpoint_that_the_step_saves_anyway_is_written_once(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, callbacks=[SignalAt(2, signal.SIGINT)])
    saved = []
    save = trainer._save_rng_state
    monkeypatch.setattr(trainer, "_save_rng_state", lambda folder: (saved.append(folder), save(folder)))
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    assert stopped.value.code == 130
    assert saved == [str(tmp_path / "checkpoint-2")]


def test_nothing_of_a_stopped_run_is_pushed(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, callbacks=[SignalAt(2, signal.SIGTERM)])
    monkeypatch.setattr(trainer.args, "push_to_hub", True)
    monkeypatch.setattr("singer_hf.training.hub.upload_checkpoint", lambda *_: pytest.fail("pushed"))
    with pytest.raises(SystemExit):
        trainer.train()


@pytest.fixture
def usual_interrupt():
    """Python's own handler of Ctrl-C, which a process in the background of a script does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_interrupt")
def test_a_second_signal_acts_as_usual():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.agreed() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    make_trainer(tmp_path, max_steps=1).train()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_data_worker_ignores_signals_while_the_training_runs_and_no_longer():
    with StopSignals():
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), signal.SIGTERM)  # as from a queue: ignored
            signal.pause()  # ended by the signal below, from a process that is no longer training
            os._exit(0)
        while (status := os.waitpid(worker, os.WNOHANG)) == (0, 0) and not is_waiting(worker):
            pass
        assert status == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(worker, 0)[1]) == signal.SIGTERM


def is_waiting(process: int) -> bool:
    """Whether a process sleeps."""
    with open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"
