"""The card's metadata in the form of the Hub: evaluation results and ids."""

import math
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from singer_hf.cards.hub_metadata import Evaluation, eval_results, evaluation_of, hub_id
from singer_hf.cards.student_card import CardInfo, student_card


def test_metrics_become_results_with_the_tasks_of_the_hub_without_those_not_finite() -> None:
    rows = [
        Evaluation("classification", "ILSVRC/imagenet-1k", "top1", 0.7059),
        ("knn", "CIFAR 10", "top1", 0.5),
        ("depth", "NYU v2", "rmse", math.nan),
        ("segmentation", "a", "mean_iou", np.float32(0.5)),
    ]
    results = [
        (r.task_type, r.dataset_type, r.dataset_config, r.dataset_name, r.metric_name, r.metric_value)
        for r in eval_results(rows)
    ]
    assert results == [
        ("image-classification", "ILSVRC/imagenet-1k", None, "ILSVRC/imagenet-1k", "top1 (classification)", 0.7059),
        ("image-classification", "custom", "CIFAR 10", "CIFAR 10", "top1 (knn)", 0.5),
        ("image-segmentation", "custom", "a", "a", "mean_iou (segmentation)", 0.5),
    ]
    assert type(eval_results(rows)[2].metric_value) is float
    assert "| depth | NYU v2 | rmse | nan |  |  |" in student_card(CardInfo(evaluations=rows)).text


def test_metrics_come_back_from_a_saved_card_and_no_folder_is_a_type_of_data(tmp_path, monkeypatch):
    (tmp_path / "data/photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    rows = [
        Evaluation("knn", "ethz/food101", "knn_top1", 0.5, 100, 0.4, 0.6),
        Evaluation("classification", "ethz/food101", "top1", 0.7),
        Evaluation("classification", "data/photos", "top1", 0.25, 20, 0.125, 0.5),
        Evaluation("classification", str(tmp_path / "data"), "top1", 0.75),
    ]
    student_card(CardInfo(evaluations=rows)).save("README.md")
    results = ModelCard.load("README.md").data.eval_results
    assert [evaluation_of(result) for result in results] == [
        *rows[:2],
        rows[2]._replace(dataset="photos"),
        rows[3]._replace(dataset="data"),
    ]
    assert [result.dataset_type for result in results] == ["ethz/food101", "ethz/food101", "custom", "custom"]


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
