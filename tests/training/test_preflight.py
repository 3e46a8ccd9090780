"""The outlook at the start of a run, with a clock of the test."""

import itertools

import pytest
import torch
from runs import files_in, image_dataset, make_trainer
from torch import nn
from transformers import TrainerControl, TrainerState

from singer_hf.training.guards import preflight
from singer_hf.training.guards.preflight import Preflight, duration, memory_lines

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


class Arguments:
    train_batch_size, world_size, gradient_accumulation_steps = 16, 2, 1
    dataloader_num_workers, use_cpu = 0, True


def simulate(monkeypatch, loading: float, stepping: float, num_steps: int = 20, max_steps: int = 1000, **options):
    """Steps that take ``stepping`` seconds after ``loading`` seconds of the loader."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    clock = itertools.accumulate(itertools.cycle([loading, stepping]))
    monkeypatch.setattr(preflight, "_now", lambda args: next(clock))
    callback = Preflight([nn.Parameter(torch.zeros(2**18))], [nn.Parameter(torch.zeros(2**19))], **options)
    state, control = TrainerState(max_steps=max_steps), TrainerControl()
    for step in range(num_steps):
        state.global_step = step
        callback.on_step_begin(Arguments, state, control)
        state.global_step = step + 1
        callback.on_step_end(Arguments, state, control)
        if control.should_training_stop:
            break
    return callback, state, control


def test_the_outlook_has_speed_time_loader_and_size(monkeypatch, capsys):
    callback, _, control = simulate(monkeypatch, loading=0.5, stepping=3.5)
    assert callback.lines == [
        "Outlook after 8 timed steps of 32 images: 8 images a second, about 66 min to the end of step 1000 without "
        "evaluations; the loader takes 12% of the time; a checkpoint takes 7 MiB."
    ]
    assert capsys.readouterr().out.splitlines() == callback.lines
    assert not control.should_training_stop


def test_a_slow_loader_is_named_with_what_to_do(monkeypatch):
    callback, *_ = simulate(monkeypatch, loading=3.0, stepping=1.0)
    assert "the loader takes 75% of the time" in callback.lines[0]
    assert callback.lines[1] == "The loader holds the run back: try `dataloader_num_workers` 8 (now 0)."
    monkeypatch.setattr(Arguments, "dataloader_num_workers", 8)
    callback, *_ = simulate(monkeypatch, loading=3.0, stepping=1.0)
    assert callback.lines[1] == "The loader holds the run back: use smaller image files, or more CPU cores."


def test_a_short_run_has_no_outlook(monkeypatch, capsys):
    callback, *_ = simulate(monkeypatch, 1.0, 1.0, max_steps=99)
    assert callback.lines == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("max_steps", "ends"), [(1000, 10), (30, 10), (5, 5)])
def test_a_dry_run_ends_after_ten_steps_without_a_save(monkeypatch, max_steps, ends):
    _, state, control = simulate(monkeypatch, 1.0, 1.0, max_steps=max_steps, dry_run=True)
    assert state.global_step == ends
    assert (control.should_training_stop, control.should_save, control.should_evaluate) == (True, False, False)


def test_a_dry_run_writes_nothing_and_deletes_nothing(tmp_path, capsys):
    earlier = tmp_path / "model.safetensors"
    earlier.write_bytes(b"an earlier run")
    trainer = make_trainer(
        tmp_path, dry_run=True, max_steps=40, save_steps=1, overwrite_output_dir=True, train_dataset=image_dataset(8)
    )
    trainer.train()
    assert trainer.state.global_step == 10
    assert "Outlook after 8 timed steps of 4 images" in capsys.readouterr().out
    assert earlier.read_bytes() == b"an earlier run"
    assert not any(name.startswith("checkpoint-") for name in files_in(tmp_path))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "5 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7200, "2 h 0 min"), (9000, "2 h 30 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(("used", "advised"), [(10.0, 512), (30.0, 256), (32.0, 256), (60.0, None), (100.0, None)])
def test_a_larger_batch_is_advised_where_it_fits(used, advised):
    """Of 80 GiB 64 may be filled; the batch is doubled as often as it fits."""
    seen, *advice = memory_lines(used, 80.0, 128)
    assert seen == f"At most {used:.1f} of 80.0 GiB of GPU memory were in use."
    room = f"There is room for `per_device_train_batch_size` {advised} (now 128); the learning rate is to be"
    assert advice == ([] if advised is None else [f"{room} chosen anew then."])
