import pickle

import datasets
import pytest
import torch
from datasets import Dataset
from noise_images import batches, crop, joined, make_dataset, noise
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import transform_images


def test_a_missing_file_and_a_null_are_broken_too(tmp_path):
    noise(0).save(tmp_path / "a.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "gone.png"), None]
    rows = transform_images(select_image_and_label(Dataset.from_dict({"f": paths}), image_column="f"), crop())
    assert "pixel_values" in rows[0]
    assert rows[1]["error"].startswith(f"{tmp_path / 'gone.png'} (FileNotFoundError: ")
    assert rows[2]["error"].startswith("row 2 (")


def test_views_depend_on_seed_epoch_and_index_only():
    dataset = make_dataset()
    rows = transform_images(dataset, crop(), seed=1)
    straight = joined(batches(rows, batch_size=4))
    torch.manual_seed(99)
    assert torch.equal(joined(batches(rows, batch_size=3, num_workers=2)), straight)
    assert torch.equal(rows[7]["pixel_values"], straight[7])
    assert not torch.equal(joined(batches(transform_images(dataset, crop(), seed=2), batch_size=4)), straight)
    rows.set_epoch(1)
    assert not torch.equal(joined(batches(rows, batch_size=4)), straight)
    rows.set_epoch(0)
    assert torch.equal(joined(batches(rows, batch_size=4)), straight)


def test_persistent_workers_see_the_next_epoch():
    rows = transform_images(make_dataset(), crop())
    loader = DataLoader(rows, 4, collate_fn=ImageCollator(), num_workers=2, persistent_workers=True)
    first = joined(list(loader))
    rows.set_epoch(1)
    second = joined(list(loader))
    assert not torch.equal(first, second)
    assert torch.equal(second, joined(batches(rows, batch_size=4)))


def test_reading_a_row_leaves_the_random_state_alone():
    rows = transform_images(make_dataset(), crop())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    rows[0]
    assert torch.equal(torch.rand(3), expected)


def write_shards(folder, count=12, shards=3):
    folder.mkdir()
    for shard in range(shards):
        make_dataset(count).select(range(shard, count, shards)).to_parquet(folder / f"{shard}.parquet")
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streaming_reads_every_image_once(tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
    stream = load_image_dataset(write_shards(tmp_path / "data"), streaming=True, shuffle_buffer=4)
    rows = transform_images(stream, crop())
    first = batches(rows, batch_size=4, num_workers=num_workers)
    assert sorted(joined(first, "labels").tolist()) == list(range(12))
    again = batches(rows, batch_size=4, num_workers=num_workers)
    assert torch.equal(joined(again), joined(first))
    rows.set_epoch(1)
    other = batches(rows, batch_size=4, num_workers=num_workers)
    assert sorted(joined(other, "labels").tolist()) == list(range(12))
    assert joined(other, "labels").tolist() != joined(first, "labels").tolist()


def test_rows_and_collator_survive_pickling():
    rows = pickle.loads(pickle.dumps(transform_images(make_dataset(), crop())))
    collator = pickle.loads(pickle.dumps(ImageCollator(max_broken_share=0.2)))
    assert collator.max_broken_share == 0.2
    assert len(joined(batches(rows, collator, batch_size=6))) == 12


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, pixel_values, labels=None):
        self.seen.append(pixel_values.detach().clone())
        return {"loss": (self.scale * pixel_values).square().mean()}


@pytest.mark.parametrize("streaming", [False, True])
def test_trainer_reads_rows_on_workers_and_a_resumed_run_sees_the_same_images(tmp_path, streaming):
    folder = write_shards(tmp_path / "data", count=16, shards=2)
    rows = transform_images(load_image_dataset(folder, streaming=streaming), crop())
    options = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4, "remove_unused_columns": False,
               "dataloader_num_workers": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}  # fmt: skip

    def run(resume):
        args = TrainingArguments(tmp_path / "out", **options)
        trainer = Trainer(Tiny(), args, train_dataset=rows, data_collator=ImageCollator())
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.seen

    straight = run(None)
    resumed = run(str(tmp_path / "out" / "checkpoint-4"))
    assert [len(batch) for batch in straight] == [4] * 6
    assert all(torch.equal(a, b) for a, b in zip(resumed, straight[4:], strict=True))
    assert not torch.equal(straight[0], straight[3])


def test_a_dataset_without_an_image_column_is_refused():
    with pytest.raises(
        ValueError, match=r'^`dataset` must have a column "image", got \[\'a\'\]; see `select_image_and_label`'
    ):
        transform_images(Dataset.from_dict({"a": [1]}), crop())
