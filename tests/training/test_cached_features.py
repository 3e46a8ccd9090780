"""A cache of the teacher's features: which epochs run the teacher, what is the same without it, what is refused."""

import pickle
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import StopAt, differing, image_dataset, images_seen, make_resumable, make_trainer, small_student, snapshot

from singer_hf.baselines.cleanups.neighbor_mean import NeighborMeanMethod
from singer_hf.training.cache.feature_store import FeatureStore

# 20 images of 4 a batch: 5 steps an epoch, 3 epochs.
LENGTH = {"train_dataset": image_dataset(20), "max_steps": 15, "save_strategy": "no", "num_artifact_images": 0}


def cached(output_dir, folder, make=make_trainer, **options):
    own = {"cache_teacher_features": str(folder), "num_cached_crops": 2}
    return make(output_dir, **{**LENGTH, **own, **options})


def teacher_passes(trainer):
    """A list of the training steps in which the teacher's first block ran."""
    steps = []
    lead = getattr(trainer.distiller, "lead", trainer.distiller)

    def note(*_):
        if lead.training:  # not in checks and logs
            steps.append(trainer.state.global_step)

    lead.teacher_view.blocks[0].register_forward_hook(note)
    return steps


def trained(trainer):
    trainer.train()
    return snapshot(trainer.distiller)


@pytest.mark.parametrize("bare", [False, True])
def test_the_teacher_runs_in_the_first_epochs_and_it_does_not_matter_what_was_read(tmp_path, bare):
    first = cached(tmp_path / "first", tmp_path / "cache", bare=bare)
    passes = teacher_passes(first)
    weights = trained(first)
    assert passes == list(range(10))
    second = cached(tmp_path / "second", tmp_path / "cache", bare=bare, dataloader_num_workers=2)
    passes = teacher_passes(second)
    assert differing(weights, trained(second)) == set()
    assert passes == []


def test_losses_are_those_of_the_teachers_pass_within_the_rounding_of_float16(tmp_path):
    trainer, plain = cached(tmp_path / "a", tmp_path / "cache"), make_trainer(tmp_path / "b", **LENGTH)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"pixels", "cached_row", "labels"}
    inputs = trainer._prepare_inputs(batch)
    for own in (trainer, plain):
        own.distiller.eval()  # L_info of all images
    live = plain.distiller(inputs["pixel_values"])
    for _ in range(2):  # computed and written, then read
        with trainer.cached_teacher.batch(inputs):
            output = trainer.distiller(inputs["pixel_values"])
        for name, value in live.components.items():
            torch.testing.assert_close(output.components[name], value, rtol=2e-3, atol=1e-5)
        inputs["teacher_tokens"] = torch.from_numpy(
            np.array(trainer.cached_teacher.store.tokens[inputs["cached_row"]])
        )


def test_epoch_2_has_the_crops_of_epoch_0(tmp_path):
    trainer = cached(tmp_path / "run", tmp_path / "cache", train_dataset=image_dataset(4), max_steps=3)
    rows = trainer.train_dataset
    crops = []
    for epoch in range(3):
        rows.set_epoch(epoch)
        crops.append(torch.stack([row["pixels"] for row in rows.__getitems__(range(4))]))
    assert torch.equal(crops[0], crops[2])
    assert not torch.equal(crops[0], crops[1])


@pytest.mark.parametrize("stop", [3, 6])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, stop):
    length = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    settings = {"make": make_resumable, "num_cached_crops": 1, **length}
    straight = trained(cached(tmp_path / "straight", tmp_path / "one", **settings))
    cached(tmp_path / "run", tmp_path / "two", callbacks=[StopAt(stop)], **settings).train()
    resumed = cached(tmp_path / "run", tmp_path / "two", **settings)
    steps, seen = teacher_passes(resumed), images_seen(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert differing(straight, snapshot(resumed.distiller)) == set()
    assert steps == list(range(stop, 5))
    assert [step for step, _ in seen] == list(range(stop, 8))


def test_a_resumed_run_must_have_the_same_number_of_crops(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    cached(tmp_path / "run", tmp_path / "one", callbacks=[StopAt(3)], **settings).train()
    other = cached(tmp_path / "run", tmp_path / "two", num_cached_crops=1, **settings)
    with pytest.raises(ValueError, match="num_cached_crops 2 -> 1"):
        other.train(resume_from_checkpoint=True)


def test_several_students_read_one_cache(tmp_path):
    students = {"small": small_student(), "tiny": small_student(hidden_size=8, num_attention_heads=2)}
    trainer = cached(tmp_path / "run", tmp_path / "cache", model=students)
    passes = teacher_passes(trainer)
    before = snapshot(trainer.distiller)
    changed = differing(before, trained(trainer))
    assert passes == list(range(10))
    assert all(any(name.startswith(f"distillers.{i}.student") for name in changed) for i in range(2))


def test_size_and_time_are_said_at_the_start(tmp_path, capsys):
    cached(tmp_path / "run", tmp_path / "cache")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Teacher features"))
    assert re.fullmatch(
        r"Teacher features of 20 images x 2 crops take 0\.00 GB in .*cache, 0% are there\. The teacher's pass, about "
        r"\d+ s for the others, ends with epoch 2\.",
        line,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": NeighborMeanMethod(), "bare": True}, "does not work with the method 'neighbor'"),
        ({"data_collator": lambda rows: rows}, "does not work with a stream, or rows or a collator of your own"),
        ({"torch_compile": True}, "does not work with FSDP or `torch_compile`"),
        ({"max_steps": 10}, "`num_cached_crops` must be less than the 2 epochs of the run"),
        ({"num_cached_crops": 0}, "`num_cached_crops` must be at least 1, got 0"),
        ({"cache_teacher_features": None}, "`num_cached_crops` needs `cache_teacher_features`"),
    ],
)
def test_what_a_cache_cannot_do_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cached(tmp_path / "run", tmp_path / "cache", **options)


def test_a_folder_in_the_output_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a folder in `output_dir`, which is uploaded and replaced"):
        cached(tmp_path / "run", tmp_path / "run" / "cache")


def test_several_machines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="does not work with processes on several machines"):
        cached(tmp_path / "run", tmp_path / "cache")


def test_features_of_another_run_are_not_taken(tmp_path):
    cached(tmp_path / "first", tmp_path / "cache")
    with pytest.raises(ValueError, match="features of another run, with other crops, images, seed; give another"):
        cached(tmp_path / "second", tmp_path / "cache", seed=4, num_cached_crops=1)


def test_a_disk_that_is_too_small_is_said_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(OSError, match=re.escape("takes 4.0 GB and only 1.0 GB are free at")):
        FeatureStore(tmp_path, 10**6, 2, (2, 5, 100), {})


def test_rows_count_once_they_are_committed_and_survive_pickling(tmp_path):
    store = FeatureStore(tmp_path, 3, 2, (1, 2, 4), {"seed": 0})
    tokens = np.arange(8, dtype=np.float16).reshape(1, 1, 2, 4)
    store.write(np.array([4]), tokens)
    assert (store.read(4), store.num_complete) == (None, 0)
    store.commit()
    again = pickle.loads(pickle.dumps(FeatureStore(tmp_path, 3, 2, (1, 2, 4), {"seed": 0})))
    np.testing.assert_array_equal(again.read(4), tokens[0])
    assert (again.num_complete, again.read(0)) == (1, None)
    with pytest.raises(FloatingPointError, match="do not fit into float16"):
        store.write(np.array([0]), np.full((1, 1, 2, 4), np.inf, dtype=np.float16))
