import socket
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from grey_images import grey_images, grey_levels, grey_png

from singer_hf.data.datasets import load_image_dataset


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    def refuse(*args):
        raise AssertionError(f"a connection was tried: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Newer versions of `datasets` wait 5 seconds at the end of an interleaved stream.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)


def write_image_folder(root: Path, count=3):
    for split, levels in (("train", range(count)), ("test", range(100, 102))):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for level in levels:
                (folder / f"{level}.png").write_bytes(grey_png(level))
    return root


def as_image_folder(root):
    write_image_folder(root)
    return [0, 1, 2, 0, 1, 2]


def as_parquet(root):
    root.mkdir()
    grey_images().to_parquet(root / "train-00000.parquet")
    return [0, 1, 2, 3, 4, 5]


def as_arrow(root):
    root.mkdir()
    grey_images().save_to_disk(root / "saved")
    (root / "saved" / "data-00000-of-00001.arrow").rename(root / "train.arrow")
    for file in (root / "saved").iterdir():
        file.unlink()
    (root / "saved").rmdir()
    return [0, 1, 2, 3, 4, 5]


def as_saved(root):
    grey_images().save_to_disk(root)
    return [0, 1, 2, 3, 4, 5]


def as_saved_dict(root):
    DatasetDict(train=grey_images(), test=grey_images(2)).save_to_disk(root)
    return [0, 1, 2, 3, 4, 5]


def as_captioned_images(root):
    root.mkdir()
    for level in range(3):
        (root / f"{level}.png").write_bytes(grey_png(level))
        (root / f"{level}.txt").write_text("a caption")
    return [0, 1, 2]


def as_annotated_splits(root):
    write_image_folder(root)
    for index in range(9):
        (root / "train" / f"{index}.json").write_text("{}")
    return [0, 1, 2, 0, 1, 2]


def as_parquet_beside_pictures(root):
    (root / "assets").mkdir(parents=True)
    for level in range(3):
        (root / "assets" / f"{level}.png").write_bytes(grey_png(200))
    (root / "data").mkdir()
    grey_images().to_parquet(root / "data" / "train-00000-of-00001.parquet")
    return [0, 1, 2, 3, 4, 5]


KINDS = [
    as_image_folder,
    as_captioned_images,
    as_annotated_splits,
    as_parquet,
    as_parquet_beside_pictures,
    as_arrow,
    as_saved,
    as_saved_dict,
]


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_local_folder_loads_without_a_connection(tmp_path, write, streaming):
    expected = write(tmp_path / "data")
    dataset = load_image_dataset(tmp_path / "data", streaming=streaming)
    assert isinstance(dataset, IterableDataset) is streaming
    assert dataset.features["image"] == datasets.Image(decode=False)
    assert grey_levels(dataset) == expected


def test_a_single_parquet_file_loads(tmp_path):
    grey_images(3).to_parquet(tmp_path / "some.parquet")
    assert grey_levels(load_image_dataset(str(tmp_path / "some.parquet"))) == [0, 1, 2]


@pytest.mark.parametrize("name", ["parquet", "parquet/", "imagefolder"])
def test_a_folder_called_like_a_loader_of_datasets_is_that_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    grey_images(3).to_parquet(f"{name}/train.parquet")
    grey_images(5).to_parquet("train.parquet")  # beside it
    assert grey_levels(load_image_dataset(name)) == [0, 1, 2]


def test_image_folder_with_a_table_of_metadata_stays_an_image_folder(tmp_path):
    write_image_folder(tmp_path / "data")
    Dataset.from_dict({"file_name": ["cat/0.png"]}).to_parquet(tmp_path / "data" / "train" / "metadata.parquet")
    assert grey_levels(load_image_dataset(tmp_path / "data", max_samples=1)) == [0]


def test_class_folders_become_labels_and_splits(tmp_path):
    dataset = load_image_dataset(write_image_folder(tmp_path / "data"), split="test")
    assert dataset.features["label"].names == ["cat", "dog"]
    assert dataset["label"][:] == [0, 0, 1, 1]
    assert grey_levels(dataset) == [100, 101, 100, 101]
    assert len(load_image_dataset(tmp_path / "data", split="train[:50%]+test")) == 3 + 4


def test_subset_is_seeded_sorted_and_nested(tmp_path):
    grey_images(40).to_parquet(tmp_path / "train.parquet")
    load = partial(load_image_dataset, tmp_path / "train.parquet")
    ten = grey_levels(load(max_samples=10, seed=3))
    assert ten == sorted(np.random.default_rng(3).permutation(40)[:10].tolist())
    assert ten == grey_levels(load(max_samples=10, seed=3))
    assert ten != grey_levels(load(max_samples=10, seed=4))
    assert set(grey_levels(load(max_samples=5, seed=3))) < set(ten)
    assert len(load(max_samples=99)) == 40


def test_streamed_subset_is_seeded_and_the_same_in_every_epoch(tmp_path):
    (tmp_path / "data").mkdir()
    for shard in range(4):
        grey_images(40).select(range(10 * shard, 10 * shard + 10)).to_parquet(tmp_path / "data" / f"{shard}.parquet")
    load = partial(load_image_dataset, tmp_path / "data", streaming=True, max_samples=8)
    stream = load(seed=1, shuffle_buffer=8)
    first = grey_levels(stream)
    assert sorted(first) == sorted(grey_levels(load(seed=1)))
    assert len(first) == 8
    stream.set_epoch(1)
    second = grey_levels(stream)
    assert sorted(second) == sorted(first)
    assert second != first
    assert grey_levels(load(seed=1)) != grey_levels(load(seed=2))


def write_text(root):
    root.mkdir()
    (root / "notes.txt").write_text("no image")


def write_empty(root):
    root.mkdir()
    grey_images(1).select([]).to_parquet(root / "train.parquet")


def write_table(root):
    root.mkdir()
    Dataset.from_dict({"a": [1], "b": ["x"]}).to_parquet(root / "train.parquet")


def write_saved_test_split(root):
    Dataset.from_dict(grey_images(2).to_dict(), split="test").save_to_disk(root)


NO_FOLDER = "`dataset_name` must be an existing folder or a Hub id, got 'ROOT': no such folder."
NO_IMAGES = "`dataset_name` must hold images, parquet or arrow files, got 'ROOT' with none of them."
EMPTY = "`dataset_name` must hold images, got 'ROOT' with an empty split 'train'."
NO_COLUMN = "`dataset` must have a column of images, got the columns ['a', 'b']; name it with `image_column`."
NO_SPLIT = "`split` must be one of ['train', 'test'] of 'ROOT', got 'val'."
NOT_AN_IMAGE = "`image_column` must hold images, got 'label' of type ClassLabel(names=['cat', 'dog'])."
NOT_A_CLASS = (
    "`label_column` must hold class indices, got 'b' of type Value('string'); convert class names with "
    "`dataset.class_encode_column`."
)
ERRORS = [
    (lambda root: None, {}, FileNotFoundError, NO_FOLDER),
    (lambda root: root.mkdir(), {}, ValueError, NO_IMAGES),
    (write_text, {}, ValueError, NO_IMAGES),
    (write_empty, {}, ValueError, EMPTY),
    (write_empty, {"streaming": True}, ValueError, EMPTY),
    (write_table, {}, ValueError, NO_COLUMN),
    (write_image_folder, {"split": "val"}, ValueError, NO_SPLIT),
    (write_image_folder, {"split": "val", "streaming": True}, ValueError, NO_SPLIT),
    (as_saved_dict, {"split": "val"}, ValueError, NO_SPLIT),
    (write_saved_test_split, {}, ValueError, "`split` must be one of ['test'] of 'ROOT', got 'train'."),
    (as_parquet, {"image_column": "img"}, ValueError, "`image_column` must be one of ['image'], got 'img'."),
    (write_image_folder, {"image_column": "label"}, ValueError, NOT_AN_IMAGE),
    (as_parquet, {"label_column": "y"}, ValueError, "`label_column` must be one of ['image'], got 'y'."),
    (write_table, {"image_column": "b", "label_column": "b"}, ValueError, NOT_A_CLASS),
    (
        as_parquet,
        {"max_samples": 0},
        ValueError,
        "`max_samples` must be at least 1, got 0; leave it out for all images.",
    ),
    (
        as_parquet,
        {"shuffle_buffer": 9},
        ValueError,
        "`shuffle_buffer` must be 0 without `streaming`, got 9; the sampler shuffles.",
    ),
]


@pytest.mark.parametrize(("write", "options", "kind", "message"), ERRORS)
def test_bad_input_is_refused_at_the_start(tmp_path, write, options, kind, message):
    root = tmp_path / "data"
    write(root)
    with pytest.raises(kind) as caught:
        load_image_dataset(root, **options)
    assert str(caught.value) == message.replace("ROOT", str(root))


def test_an_unreachable_hub_name_says_what_to_check(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub")

    monkeypatch.setattr("singer_hf.data.datasets.load_dataset_builder", unreachable)
    with pytest.raises(FileNotFoundError) as caught:
        load_image_dataset("nobody/nothing")
    assert str(caught.value) == (
        "`dataset_name` must be an existing folder or a Hub id, got 'nobody/nothing': Couldn't reach 'nobody/nothing' "
        "on the Hub. Check the spelling and the network; a gated dataset needs `hf auth login`."
    )
