"""Data of benchmarks: splits, classes, fingerprints."""

from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from labelled import colour_dataset, image_folder

from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import data_fingerprint, load_benchmark, with_folder
from singer_hf.evaluation.benchmarks.catalog import (
    get_benchmark,
)
from singer_hf.evaluation.benchmarks.imagenet_classes import IMAGENET_R, imagenet_index


def test_unreachable_data_say_what_was_tried_and_how_to_give_a_folder():
    with pytest.raises(FileNotFoundError) as caught:
        load_benchmark(get_benchmark("food101"))
    message = str(caught.value)
    assert "the data of the benchmark 'food101' cannot be reached (tried 'ethz/food101', split 'train')" in message
    assert "`--dataset_name FOLDER`" in message
    assert "splits 'train' and 'validation'" in message


def test_a_benchmark_without_a_public_copy_is_refused():
    with pytest.raises(FileNotFoundError, match=r"'inat2019' cannot be reached \(nothing was tried\): no public copy"):
        load_benchmark(get_benchmark("inat2019"))


def test_a_local_folder_takes_the_place_of_the_hub_name(tmp_path):
    folder = image_folder(tmp_path / "own", {"train": ["a", "b"], "test": ["a", "b"]})
    benchmark = replace(with_folder(get_benchmark("oxford-pets"), str(folder)), num_classes=2)
    data = load_benchmark(benchmark)
    assert (len(data.train), len(data.test), data.num_classes, data.class_names) == (8, 8, 2, ("a", "b"))


def test_a_local_folder_with_other_classes_is_refused(tmp_path):
    folder = image_folder(tmp_path / "own", {"train": ["a", "b"], "test": ["a", "b"]})
    with pytest.raises(ValueError, match=r"`num_classes` of 'oxford-pets' must be 37, got 2 in the training split"):
        load_benchmark(with_folder(get_benchmark("oxford-pets"), str(folder)))


def test_scenes_are_drawn_without_any_file():
    data = load_benchmark(get_benchmark("scenes-depth"), max_train_samples=2, max_test_samples=3)
    assert (len(data.train), len(data.test), data.num_classes) == (2, 3, 0)
    assert data.train.column_names == ["image", "target"]
    again = load_benchmark(get_benchmark("scenes-depth"), max_train_samples=2, max_test_samples=3)
    assert again.fingerprint == data.fingerprint


def test_subsets_are_drawn_by_the_seed(tmp_path):
    colour_dataset(30).to_parquet(tmp_path / "train.parquet")
    colour_dataset(30, seed=1).to_parquet(tmp_path / "test.parquet")
    benchmark = Benchmark("own", "classification", str(tmp_path))
    first, same, other = (load_benchmark(benchmark, max_train_samples=9, seed=seed) for seed in (0, 0, 1))
    assert len(first.train) == 9
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_the_classes_of_two_folders_are_brought_to_one_numbering(tmp_path):
    train = image_folder(tmp_path / "train", {"train": ["ant", "bee", "cat"]})
    test = image_folder(tmp_path / "test", {"test": ["bee", "cat"]})
    benchmark = Benchmark("own", "classification", str(train), str(test), target_column=None)
    data = load_benchmark(benchmark)
    assert data.test["label"][:] == [1] * 4 + [2] * 4


def test_a_class_that_only_the_test_split_has_is_refused(tmp_path):
    train = image_folder(tmp_path / "train", {"train": ["ant", "bee"]})
    test = image_folder(tmp_path / "test", {"test": ["bee", "wasp"]})
    benchmark = Benchmark("own", "classification", str(train), str(test), target_column=None)
    with pytest.raises(ValueError, match=r"classes of the test split must be those of the training split, got 'wasp'"):
        load_benchmark(benchmark)


def test_folders_named_by_numbers_are_imagenet_classes_and_not_places_in_the_alphabet(tmp_path):
    folder = image_folder(tmp_path / "v2", {"test": ["0", "1", "10", "2"]}, images_per_class=1)
    data = load_benchmark(with_folder(get_benchmark("imagenet-v2"), str(folder)))
    assert data.train is None
    assert data.num_classes == 1000
    assert data.test["label"][:] == [0, 1, 10, 2]


def test_the_rendition_folders_are_mapped_by_their_wordnet_ids(tmp_path):
    folder = image_folder(tmp_path / "r", {"test": ["n01443537", "n12267677"]}, images_per_class=1)
    data = load_benchmark(with_folder(get_benchmark("imagenet-r"), str(folder)))
    assert data.test["label"][:] == [1, 988]  # goldfish and acorn


def test_a_column_of_wordnet_ids_is_mapped_too(tmp_path):
    rows = {"image": colour_dataset(3)["image"][:], "wnid": ["n12267677", "n01443537", "n12267677"]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "test.parquet")
    benchmark = replace(get_benchmark("imagenet-r"), train_name=str(tmp_path))
    assert load_benchmark(benchmark).test["label"][:] == [988, 1, 988]


def test_the_table_of_renditions_agrees_with_timm():
    folder = Path(pytest.importorskip("timm").__file__).parent / "data" / "_info"
    imagenet = (folder / "imagenet_synsets.txt").read_text().split()
    renditions = (folder / "imagenet_r_synsets.txt").read_text().split()
    assert imagenet_index(renditions) == [int(i) for i in (folder / "imagenet_r_indices.txt").read_text().split()]
    assert sorted(IMAGENET_R) == sorted(renditions)
    assert imagenet_index(imagenet) == list(range(1000))


def test_unknown_class_names_are_refused():
    assert len(IMAGENET_R) == 200
    with pytest.raises(ValueError, match=r"or by those of ImageNet-R, got 'goldfish'; rename the class folders"):
        imagenet_index(["n01443537", "goldfish"])


def test_the_fingerprint_is_of_the_rows_and_not_of_where_they_lie(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        colour_dataset(20).to_parquet(tmp_path / name / "train.parquet")
        colour_dataset(20, seed=1).to_parquet(tmp_path / name / "test.parquet")
    one, two = (load_benchmark(Benchmark("own", "classification", str(tmp_path / n))) for n in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert data_fingerprint(one.train) != data_fingerprint(one.test)
    assert data_fingerprint(one.train.select(range(19))) != data_fingerprint(one.train)
