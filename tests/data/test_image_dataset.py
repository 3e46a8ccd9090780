import io
import math
import pickle
import struct
import zlib

import datasets
import PIL.Image
import PIL.PngImagePlugin
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


def bomb(width: int, height: int) -> bytes:
    """A PNG of one colour that is small on disk and large in memory."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(math.ceil(width / 8))) * height, 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_a_decompression_bomb_is_broken_and_not_decoded(monkeypatch):
    """169 million pixels; Pillow itself refuses only more than 179 million."""
    encoded = bomb(13_000, 13_000)
    assert len(encoded) < 30_000
    rows = transform_images(select_image_and_label(Dataset.from_dict({"i": [encoded]}), image_column="i"), crop())
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("decoded"))
    row = rows[0]
    assert row["error"].startswith("row 0 (DecompressionBombWarning: Image size (169000000 pixels) exceeds limit of ")
    with pytest.warns(PIL.Image.DecompressionBombWarning):  # elsewhere it is what it was
        PIL.Image.open(io.BytesIO(encoded))


@pytest.mark.parametrize(("limit", "accepted"), [(89, False), (90, True), (None, True)])
def test_the_largest_image_is_set_in_pillow(monkeypatch, limit, accepted):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    dataset = Dataset.from_dict({"i": [bomb(10, 9)]})
    row = transform_images(select_image_and_label(dataset, image_column="i"), crop())[0]
    assert ("pixel_values" in row) == accepted


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
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)
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
