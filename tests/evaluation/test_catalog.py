"""The named benchmarks, their groups and their means."""

import pytest

from singer_hf.evaluation.benchmarks.catalog import (
    BENCHMARKS,
    MEANS,
    benchmark_table,
    expand_groups,
    get_benchmark,
    mean_metrics,
)

PAPER = {
    *("imagenet-1k", "imagenet-r", "imagenet-v2", "inat2019", "fgvc-aircraft", "oxford-pets", "food101"),
    *("flowers102", "ade20k", "nyud-v2"),
}
OTHERS = {"cifar10", "camvid", "scenes-classification", "scenes-segmentation", "scenes-depth"}


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
