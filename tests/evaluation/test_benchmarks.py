"""Named benchmarks, their data, the ImageNet classes and the heads that are reused."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from labelled import colour_dataset, half_masks, image_folder, tiny_evaluated_model
from PIL import Image

from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import data_fingerprint, load_benchmark, with_folder
from singer_hf.evaluation.benchmarks.catalog import (
    BENCHMARKS,
    MEANS,
    benchmark_table,
    expand_groups,
    get_benchmark,
    mean_metrics,
)
from singer_hf.evaluation.benchmarks.imagenet_classes import IMAGENET_R, imagenet_index
from singer_hf.evaluation.benchmarks.protocols import get_protocol
from singer_hf.evaluation.benchmarks.run import reused_head, run_benchmark
from singer_hf.evaluation.benchmarks.run_settings import RunSettings

PAPER = {
    *("imagenet-1k", "imagenet-r", "imagenet-v2", "inat2019", "fgvc-aircraft", "oxford-pets", "food101"),
    *("flowers102", "ade20k", "nyud-v2"),
}
OTHERS = {"cifar10", "camvid", "scenes-classification", "scenes-segmentation", "scenes-depth"}


def settings(tmp_path, protocol="singer", **changes):
    small = {"num_epochs": 20, "batch_size": 8, "learning_rates": (0.05,), "resamples": 20, "progress": False}
    return RunSettings(get_protocol(protocol), tmp_path / "work", **{**small, **changes})


# Names


def test_the_paper_s_ten_sets_and_the_small_ones_are_there():
    assert set(BENCHMARKS) == PAPER | OTHERS
    assert set(expand_groups(["paper"])) == PAPER


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_list_shows_size_and_licence_of_every_benchmark(name):
    benchmark = BENCHMARKS[name]
    row = next(line for line in benchmark_table().splitlines() if line.startswith(f"| {name} |"))
    assert benchmark.size
    assert benchmark.size in row
    assert benchmark.license in row
    assert benchmark.metric == {"classification": "top1", "segmentation": "mean_iou", "depth": "rmse"}[benchmark.task]


def test_groups_are_expanded_once_and_in_order():
    assert expand_groups(["cifar10", "DS", "imagenet-v2"]) == ["cifar10", "imagenet-r", "imagenet-v2"]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`benchmark` must be one of \['DS', 'FG', .*'cifar10'.*\], got 'cifar'"):
        get_benchmark("cifar")


def test_means_need_all_their_members():
    metrics = {"imagenet-r": 0.2, "imagenet-v2": 0.4, "food101": 0.9}
    assert mean_metrics(metrics) == {"DS": pytest.approx(0.3)}
    assert len(MEANS["FG"]) == 4


# Reaching the data


def test_unreachable_data_say_what_was_tried_and_how_to_give_a_folder():
    with pytest.raises(FileNotFoundError) as caught:
        load_benchmark(get_benchmark("food101"))
    message = str(caught.value)
    assert "the data of the benchmark 'food101' cannot be reached (tried 'ethz/food101', split 'train')" in message
    assert "`--dataset_name FOLDER`" in message
    assert "splits 'train' and 'validation'" in message


def test_a_benchmark_without_a_public_copy_says_so():
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


# Classes


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


# Fingerprint


def test_the_fingerprint_is_of_the_rows_and_not_of_where_they_lie(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        colour_dataset(20).to_parquet(tmp_path / name / "train.parquet")
        colour_dataset(20, seed=1).to_parquet(tmp_path / name / "test.parquet")
    one, two = (load_benchmark(Benchmark("own", "classification", str(tmp_path / n))) for n in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert data_fingerprint(one.train) != data_fingerprint(one.test)
    assert data_fingerprint(one.train.select(range(19))) != data_fingerprint(one.train)


# Runs


def test_a_linear_head_learns_the_colours_and_its_result_does_not_depend_on_workers_or_a_rerun(tmp_path):
    data = _colours(tmp_path)
    benchmark = Benchmark("colours", "classification", str(tmp_path))
    first = run_benchmark(tiny_evaluated_model(), benchmark, data, settings(tmp_path))
    assert first.results[0].metric == "top1"
    assert first.results[0].value > 0.9
    assert first.confusion.sum() == 30
    again = run_benchmark(tiny_evaluated_model(), benchmark, data, settings(tmp_path / "other", num_workers=1))
    assert [item.value for item in again.results] == [item.value for item in first.results]
    # Another seed in the same folder is another fit, not a wrong state to go on from.
    run_benchmark(tiny_evaluated_model(), benchmark, data, settings(tmp_path, seed=1))


def test_neighbours_are_found_too(tmp_path):
    benchmark = Benchmark("colours", "knn", str(tmp_path))
    run = run_benchmark(tiny_evaluated_model(), benchmark, _colours(tmp_path), settings(tmp_path))
    assert [item.metric for item in run.results] == ["knn_top1"]
    assert run.results[0].value > 0.9
    assert run.results[0].head == "cls, k=20, T=0.07"


def test_random_views_are_learned_from_as_well(tmp_path):
    benchmark = Benchmark("colours", "classification", str(tmp_path))
    run = run_benchmark(tiny_evaluated_model(), benchmark, _colours(tmp_path), settings(tmp_path, augment=True))
    assert run.results[0].value > 0.9
    assert run.results[0].changes["augment"] is True


def test_the_rates_of_dinov2_follow_the_batch_and_those_given_by_hand_do_not(tmp_path):
    base = settings(tmp_path, "dinov2", learning_rates=None, batch_size=None).rates(dense=False)
    assert max(base) == pytest.approx(0.05)  # 0.1 scaled by 128 / 256
    assert max(settings(tmp_path, "dinov2", learning_rates=None, batch_size=32).rates(dense=False)) == pytest.approx(
        0.0125
    )
    assert settings(tmp_path, "dinov2", learning_rates=(1.0,), batch_size=32).rates(dense=False) == (1.0,)
    assert settings(tmp_path, "singer", learning_rates=None, batch_size=32).rates(dense=False) == (0.5,)


@pytest.mark.parametrize(("protocol", "restricted"), [("singer", False), ("dinov2", True)])
def test_the_imagenet_head_is_trained_once_and_reused(tmp_path, protocol, restricted):
    names = ["n01443537", "n12267677", "n02007558"]  # classes 1, 988 and 130
    imagenet = image_folder(tmp_path / "in", {"train": ["1", "988", "130"], "validation": ["1", "988", "130"]})
    evaluated, how = tiny_evaluated_model(), settings(tmp_path, protocol)
    renditions = with_folder(get_benchmark("imagenet-r"), str(image_folder(tmp_path / "r", {"test": names})))
    head = reused_head(evaluated, renditions, how, dataset_name=str(imagenet))
    assert head[1].linear.out_features == 1000
    assert "trained on 12 images" in head[0]
    run = run_benchmark(evaluated, renditions, load_benchmark(renditions), how, head)
    assert run.results[0].value > 0.6
    assert bool(run.results[0].notes) is restricted  # dinov2 answers among the classes of the set only
    assert restricted == any("answers among 200 classes" in note for note in run.results[0].notes)
    # The second time no ImageNet is needed.
    again = reused_head(evaluated, renditions, how, dataset_name=str(tmp_path / "gone"))
    assert torch.equal(again[1].linear.weight, head[1].linear.weight)


def test_a_set_with_one_class_is_refused(tmp_path):
    data = _colours(tmp_path, num_classes=1)
    benchmark = Benchmark("colours", "classification", str(tmp_path))
    with pytest.raises(ValueError, match=r"`labels` must hold at least 2 classes"):
        run_benchmark(tiny_evaluated_model(), benchmark, data, settings(tmp_path))


@pytest.mark.parametrize("protocol", ["singer", "dinov2"])
def test_segmentation_learns_colours_in_one_window_and_in_sliding_ones(tmp_path, protocol):
    half_masks(16).to_parquet(tmp_path / "train.parquet")
    half_masks(6, seed=1).to_parquet(tmp_path / "test.parquet")
    benchmark = replace(with_folder(get_benchmark("camvid"), str(tmp_path)), num_classes=2)
    how = settings(tmp_path, protocol, resize_size=20 if protocol == "dinov2" else None, learning_rates=(0.1,))
    run = run_benchmark(tiny_evaluated_model(), benchmark, load_benchmark(benchmark), how)
    assert run.results[0].metric == "mean_iou"
    assert run.results[0].value > 0.8
    pixels = (6, 19, 30) if protocol == "dinov2" else None  # masks as stored, without the void row
    assert pixels is None or run.confusion.sum() == np.prod(pixels)
    shown = run.pictures
    assert [len(part) for part in (shown.images, shown.truths, shown.predictions)] == [4, 4, 4]
    assert shown.truths[0].shape == shown.predictions[0].shape


def test_masks_that_count_nowhere_are_refused(tmp_path):
    half_masks(6).to_parquet(tmp_path / "train.parquet")
    half_masks(3, seed=1).to_parquet(tmp_path / "test.parquet")
    benchmark = with_folder(get_benchmark("camvid"), str(tmp_path))
    benchmark = replace(benchmark, num_classes=2, ignore_values=(0, 1, 11))
    with pytest.raises(ValueError, match=r"`labels` must hold pixels that count, got only the ignored index 255"):
        run_benchmark(tiny_evaluated_model(), benchmark, load_benchmark(benchmark), settings(tmp_path))


def test_masks_with_more_classes_than_said_are_refused(tmp_path):
    half_masks(6).to_parquet(tmp_path / "train.parquet")
    half_masks(3, seed=1).to_parquet(tmp_path / "test.parquet")
    benchmark = replace(with_folder(get_benchmark("camvid"), str(tmp_path)), num_classes=2, ignore_values=())
    with pytest.raises(ValueError, match=r"`labels` must be within 0 and 1 or the ignored 255, got 11"):
        run_benchmark(tiny_evaluated_model(), benchmark, load_benchmark(benchmark), settings(tmp_path))


def test_depth_is_predicted_in_metres(tmp_path):
    benchmark = get_benchmark("scenes-depth")
    data = load_benchmark(benchmark, max_train_samples=8, max_test_samples=4)
    run = run_benchmark(
        tiny_evaluated_model(), benchmark, data, settings(tmp_path, num_epochs=4, depth_temperature=1.0)
    )
    assert run.results[0].metric == "rmse"
    assert 0 < run.results[0].value < 6
    assert run.confusion is None
    assert run.pictures.predictions[0].shape == (16, 16)


def test_depth_without_a_valid_pixel_is_refused(tmp_path):
    benchmark = replace(get_benchmark("scenes-depth"))
    data = load_benchmark(benchmark, max_train_samples=4, max_test_samples=2)
    empty = data.train.map(lambda row: {"target": _flat_depth()}, load_from_cache_file=False)
    with pytest.raises(ValueError, match=r"got 0, NaN or larger values everywhere; check the depth column's unit"):
        run_benchmark(tiny_evaluated_model(), benchmark, replace(data, train=empty), settings(tmp_path))


def _flat_depth():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), dtype=np.float32)).save(buffer, "TIFF")
    return {"bytes": buffer.getvalue(), "path": None}


def _colours(folder, num_classes=3):
    colour_dataset(60, num_classes=num_classes).to_parquet(folder / "train.parquet")
    colour_dataset(30, seed=1, num_classes=num_classes).to_parquet(folder / "test.parquet")
    return load_benchmark(Benchmark("colours", "classification", str(folder)))
