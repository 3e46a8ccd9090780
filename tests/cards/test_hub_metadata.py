"""The card's metadata in the form of the Hub: evaluation results and ids."""

import math
from pathlib import Path

import numpy as np
import pytest

from singer_hf.cards.hub_metadata import Evaluation, eval_results, hub_id
from singer_hf.cards.student_card import CardInfo, student_card


def test_metrics_become_results_with_the_tasks_of_the_hub_without_those_not_finite() -> None:
    rows = [
        Evaluation("classification", "ILSVRC/imagenet-1k", "top1", 0.7059),
        ("knn", "CIFAR 10", "top1", 0.5),
        ("depth", "NYU v2", "rmse", math.nan),
        ("segmentation", "a", "mean_iou", np.float32(0.5)),
    ]
    results = [
        (r.task_type, r.dataset_type, r.dataset_name, r.metric_name, r.metric_value) for r in eval_results(rows)
    ]
    assert results == [
        ("image-classification", "ilsvrc/imagenet-1k", "ILSVRC/imagenet-1k", "top1 (classification)", 0.7059),
        ("image-classification", "cifar-10", "CIFAR 10", "top1 (knn)", 0.5),
        ("image-segmentation", "a", "a", "mean_iou (segmentation)", 0.5),
    ]
    assert type(eval_results(rows)[2].metric_value) is float
    assert "| depth | NYU v2 | rmse | nan |" in student_card(CardInfo(evaluations=rows)).text


def test_an_existing_folder_is_no_hub_id_unless_folders_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("runs/teacher") is None
    assert hub_id("runs/teacher", folders=False) == "runs/teacher"


@pytest.mark.parametrize(
    "name", ["", "imagefolder", "./teacher", "../teacher", "/a/b", "~/a", "a/b/c", "a b", "C:\\a"]
)
def test_these_are_no_hub_ids(name: str) -> None:
    assert hub_id(name) is None


@pytest.mark.parametrize("name", ["gpt2", "facebook/dinov2-large", "timm/vit_large_patch16_224.augreg_in21k_ft_in1k"])
def test_these_are_hub_ids(name: str) -> None:
    assert hub_id(name) == name
