"""Names of models and the choice of benchmarks."""

import pytest

from singer_hf.evaluation.evaluate_models import select_benchmarks
from singer_hf.evaluation.given_models import short_names


def test_models_are_named_by_the_fewest_parts_of_their_paths(tmp_path):
    assert short_names(["/a/b/student", "user/teacher"]) == ["student", "teacher"]
    assert short_names(["/a/one/final", "/a/two/final"]) == ["one/final", "two/final"]
    assert short_names([str(tmp_path)]) == [tmp_path.name]


def test_groups_and_overrides_give_benchmarks():
    assert [item.name for item in select_benchmarks(["DS"])] == ["imagenet-r", "imagenet-v2"]
    (camvid,) = select_benchmarks(["camvid"], dataset_name="folder", overrides={"num_classes": 2})
    assert (camvid.train_name, camvid.num_classes) == ("folder", 2)
    (own,) = select_benchmarks(None, task="depth", dataset_name="path/to/rooms", overrides={"depth_scale": 0.1})
    assert (own.name, own.task, own.metric, own.depth_scale) == ("rooms", "depth", "rmse", 0.1)


def test_neighbours_need_classes():
    assert select_benchmarks(["food101"], task="knn")[0].metric == "knn_top1"
    with pytest.raises(ValueError, match="`--task knn` needs benchmarks of classification, got 'ade20k'"):
        select_benchmarks(["food101", "ade20k"], task="knn")
