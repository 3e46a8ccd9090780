"""A resumed run sees the images that are next: of a stream behind its first pass, and with persistent workers."""

import re

import pytest
from runs import StopAt, differing, image_dataset, images_seen, make_resumable, run_script, snapshot

from singer_hf.data.datasets import _stream_subset

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def stream(**shuffling):
    """20 images, 5 batches of 4."""
    dataset = image_dataset(20).to_iterable_dataset(num_shards=2)
    return _stream_subset(dataset, shuffling.get("max_samples"), shuffling.get("shuffle_buffer", 0), seed=0)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run over a stream that was stopped in its second pass."""
    folder = tmp_path_factory.mktemp("stopped")
    make_resumable(folder, train_dataset=stream(), max_steps=6, save_steps=6).train()
    return folder


def logged(trainer):
    return [{name: row[name] for name in ("loss", "epoch")} for row in trainer.state.log_history if "loss" in row]


def assert_resumed_equals_straight(make, folder, step):
    straight = make(folder / "straight")
    expected = images_seen(straight)
    straight.train()
    make(folder / "stopped", callbacks=[StopAt(step)]).train()
    resumed = make(folder / "stopped")
    seen = images_seen(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert seen == [(done, batch) for done, batch in expected if done >= step]
    assert logged(resumed) == logged(straight)
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()


WORKERS = {"dataloader_num_workers": 2}
PERSISTENT = {**WORKERS, "dataloader_persistent_workers": True}
# Step of the interruption, order of the stream, further arguments. A pass has 5 batches.
STREAMS = {
    "at the end of a pass": (5, {}, {}),
    "in the third pass": (12, {}, {}),
    "shuffled, with workers": (8, {"shuffle_buffer": 7}, WORKERS),
    "persistent workers": (8, {}, PERSISTENT),
    "subset": (8, {"max_samples": 9}, {}),
    "accumulation with a batch left over in each pass": (7, {}, {"gradient_accumulation_steps": 2}),
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_behind_its_first_pass_is_resumed_where_it_was(case, tmp_path):
    step, order, options = STREAMS[case]

    def make(folder, **more):
        return make_resumable(folder, train_dataset=stream(**order), max_steps=14, save_steps=step, **options, **more)

    assert_resumed_equals_straight(make, tmp_path, step)


def test_a_stream_that_is_resumed_for_more_steps_goes_on_where_it_was(tmp_path):
    def make(name, max_steps, **options):
        schedule = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {}}
        return make_resumable(tmp_path / name, train_dataset=stream(), max_steps=max_steps, **schedule, **options)

    long = make("long", 14, save_strategy="no")
    expected = images_seen(long)
    long.train()
    make("short", 8, save_steps=8).train()
    resumed = make("short", 14, save_strategy="no")
    seen = images_seen(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert seen == expected[8:]


ORDER = [
    ({"dataloader_num_workers": 2}, "`dataloader_num_workers` must be 0", "got 2"),
    (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        "`per_device_train_batch_size` must be 4",
        "got 2",
    ),
]


@pytest.mark.parametrize(("changes", "expected", "got"), ORDER)
def test_a_stream_in_another_order_is_refused(stopped, changes, expected, got):
    """`ignore_data_skip` starts the pass again instead."""
    trainer = make_resumable(stopped, train_dataset=stream(), max_steps=6, **changes)
    message = f"{expected}, as in '{stopped}/checkpoint-6', because the order of a stream depends on it, {got}; "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        trainer.train(resume_from_checkpoint=True)
    again = make_resumable(stopped, train_dataset=stream(), max_steps=6, ignore_data_skip=True, **changes)
    again.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("step", [4, 5])
def test_persistent_workers_and_dropout(step, tmp_path):
    """Interrupted within the first of three passes and at its end, with evaluations before and after."""

    def make(folder, **more):
        evaluation = {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset": image_dataset(6)}
        return make_resumable(folder, max_steps=12, save_steps=step, **PERSISTENT, **evaluation, **more)

    assert_resumed_equals_straight(make, tmp_path, step)


def test_a_stream_on_two_processes(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
    assert run_script("stream_ranks.py", tmp_path, launcher=launcher) == {"world": 2, "images": True, "weights": True}
