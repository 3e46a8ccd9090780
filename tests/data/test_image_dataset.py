import io
import pickle

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, ViTImageProcessor

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_dataset import ImageCollator, transform_images
from singer_hf.data.transforms import train_transform


def encoded(image, kind="png"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(seed, size=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


BROKEN = {
    "no image": b"not an image",
    "empty": b"",
    "cut off": encoded(noise(0))[:200],
    "damaged": encoded(noise(0))[:60] + b"\x00" * 40 + encoded(noise(0))[100:],
    "cut off jpeg": encoded(noise(0, 64), "jpeg")[:700],
}


def make_dataset(count=12, broken=(), labels=True):
    files = [b"broken" if index in broken else encoded(noise(index)) for index in range(count)]
    data = {"image": [{"bytes": file, "path": None} for file in files]}
    if labels:
        data["label"] = list(range(count))
    return select_image_and_label(Dataset.from_dict(data).cast_column("image", datasets.Image()))


def crop():
    return train_transform(ViTImageProcessor(size={"height": 8, "width": 8}))


def batches(rows, collator=None, **options):
    return list(DataLoader(rows, collate_fn=collator or ImageCollator(), **options))


def joined(loaded, key="pixel_values"):
    return torch.cat([batch[key] for batch in loaded])


def test_batches_hold_float_images_and_their_labels():
    first, *_, last = batches(transform_images(make_dataset(), crop()), batch_size=5)
    assert first["pixel_values"].shape == (5, 3, 8, 8)
    assert first["pixel_values"].dtype == torch.float32
    assert first["labels"].tolist() == [0, 1, 2, 3, 4]
    assert first["labels"].dtype == torch.int64
    assert last["pixel_values"].shape == (2, 3, 8, 8)


def test_labels_are_optional():
    (batch,) = batches(transform_images(make_dataset(labels=False), crop()), batch_size=12)
    assert batch.keys() == {"pixel_values"}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_dropped_and_counted(kind):
    files = [encoded(noise(1)), BROKEN[kind], encoded(noise(2))]
    dataset = select_image_and_label(Dataset.from_dict({"raw": files}), image_column="raw")
    collator = ImageCollator()
    (batch,) = batches(transform_images(dataset, crop()), collator, batch_size=3)
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert (collator.seen, collator.broken) == (3, 1)


def test_a_missing_file_and_a_null_are_broken_too(tmp_path):
    noise(0).save(tmp_path / "a.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "gone.png"), None]
    rows = transform_images(select_image_and_label(Dataset.from_dict({"f": paths}), image_column="f"), crop())
    assert "pixel_values" in rows[0]
    assert rows[1]["error"].startswith(f"{tmp_path / 'gone.png'} (FileNotFoundError: ")
    assert rows[2]["error"].startswith("row 2 (")


@pytest.mark.parametrize("persistent", [False, True])
def test_counts_of_all_workers_and_epochs_reach_the_main_process(persistent):
    rows = transform_images(make_dataset(broken={1, 10}), crop())
    collator = ImageCollator(max_broken_share=0.5)
    loader = DataLoader(rows, batch_size=3, collate_fn=collator, num_workers=2, persistent_workers=persistent)
    for _ in range(2):
        assert len(joined(list(loader))) == 10
    assert (collator.seen, collator.broken) == (24, 4)


def test_more_than_the_allowed_share_stops_the_run_and_names_an_image():
    rows = transform_images(make_dataset(broken={0, 1, 4, 5}), crop())
    with pytest.raises(RuntimeError) as caught:
        batches(rows, batch_size=3)
    message = str(caught.value)
    assert message.startswith(
        "3 of the 6 images read so far are broken, more than `max_broken_share` = 0.01 allows; the last one: "
    ) or message.startswith("4 of the 6 images read so far are broken")
    assert "row 5 (UnidentifiedImageError: cannot identify image file" in message
    assert message.endswith("). Repair or remove them.")


LIMITS = [(4, 1, False), (50, 2, False), (50, 3, True), (999, 9, False), (1000, 10, False), (1000, 11, True)]


@pytest.mark.parametrize(("seen", "broken", "stops"), LIMITS)
def test_the_share_is_taken_of_at_least_two_hundred_images(seen, broken, stops):
    good, bad = {"pixel_values": torch.zeros(3, 1, 1)}, {"error": "x.png (OSError: cut off)"}
    rows, collator = [good] * (seen - broken) + [bad] * broken, ImageCollator()
    if stops:
        with pytest.raises(RuntimeError, match=f"^{broken} of the {seen} images read so far are broken"):
            collator(rows)
    else:
        assert len(collator(rows)["pixel_values"]) == seen - broken


def test_a_batch_without_any_good_image_says_so():
    with pytest.raises(RuntimeError) as caught:
        ImageCollator()([{"error": "x.png (OSError: cut off)"}] * 2)
    assert str(caught.value) == (
        "all 2 images of a batch are broken, for example x.png (OSError: cut off); repair or remove them, or use "
        "larger batches."
    )


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


def test_what_cannot_work_is_refused():
    with pytest.raises(
        ValueError, match=r'^`dataset` must have a column "image", got \[\'a\'\]; see `select_image_col'
    ):
        transform_images(Dataset.from_dict({"a": [1]}), crop())
    with pytest.raises(ValueError, match=r"^`max_broken_share` must be between 0 and 1, got 2\.$"):
        ImageCollator(max_broken_share=2)
    rows = [{"pixel_values": torch.zeros(3, 2, 2), "labels": 1}, {"pixel_values": torch.zeros(3, 2, 2)}]
    with pytest.raises(ValueError, match=r"^`labels` must be given for all images or none, got 1 for 2 images\.$"):
        ImageCollator()(rows)
    dataset = Dataset.from_dict({"raw": [encoded(noise(0, 4)), encoded(noise(0, 5))]})
    uncropped = transform_images(select_image_and_label(dataset, image_column="raw"), v2.PILToTensor())
    with pytest.raises(
        ValueError, match=r"^`transform` must give all images one shape, got \[\(3, 4, 4\), \(3, 5, 5\)\];"
    ):
        ImageCollator()([uncropped[0], uncropped[1]])
