"""Runs of benchmarks: heads, neighbours, masks, depth, reused heads."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from labelled import colour_dataset, half_masks, image_folder, tiny_evaluated_model
from PIL import Image

from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import load_benchmark, with_folder
from singer_hf.evaluation.benchmarks.catalog import (
    get_benchmark,
)
from singer_hf.evaluation.benchmarks.protocols import get_protocol
from singer_hf.evaluation.benchmarks.run import reused_head, run_benchmark
from singer_hf.evaluation.benchmarks.run_settings import RunSettings


def settings(tmp_path, protocol="singer", **changes):
    small = {"num_epochs": 20, "batch_size": 8, "learning_rates": (0.05,), "resamples": 20, "progress": False}
    return RunSettings(get_protocol(protocol), tmp_path / "work", **{**small, **changes})


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
    assert bool(run.results[0].notes) is restricted  # dinov2 predicts among the classes of the set only
    assert restricted == any("predicts among 200 classes" in note for note in run.results[0].notes)
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
    shown = run.examples
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
    assert run.examples.predictions[0].shape == (16, 16)


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
