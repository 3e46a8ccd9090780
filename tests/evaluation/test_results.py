"""Bootstrap intervals, results.json, tables, the model card and the metrics of an evaluation."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from singer_hf.cards.student_card import CardInfo, student_card
from singer_hf.evaluation.benchmarks.catalog import get_benchmark
from singer_hf.evaluation.bootstrap import (
    ClassificationOutcomes,
    CountedOutcomes,
    bootstrap_intervals,
    knn_outcomes,
)
from singer_hf.evaluation.counts import count_classification
from singer_hf.evaluation.figures import (
    class_colours,
    confusion_figure,
    depth_figure,
    segmentation_figure,
    size_figure,
)
from singer_hf.evaluation.heads.tasks import DepthTask, SegmentationTask
from singer_hf.evaluation.metrics import divide_classification
from singer_hf.evaluation.results import (
    Result,
    all_metrics_table,
    results_table,
    write_per_class,
    write_results,
    write_to_card,
)

RNG = torch.Generator().manual_seed(0)


def classified(number=200, num_classes=7, **options):
    logits = torch.randn(number, num_classes, generator=RNG)
    labels = torch.randint(num_classes, (number,), generator=RNG)
    logits[torch.arange(number), labels] += 1.5
    top5, confidences = logits.topk(5, dim=1).indices, logits.softmax(dim=1).amax(dim=1)
    return ClassificationOutcomes(labels, top5, confidences, num_classes, **options), logits


def hits(number, right):
    scores = torch.zeros(number, 2)
    scores[:right, 1] = 1.0
    return knn_outcomes(scores, torch.ones(number, dtype=torch.long))


def result(**changes):
    values = {
        "model": "student",
        "benchmark": "food101",
        "task": "classification",
        "metric": "top1",
        "value": 0.71234,
        "low": 0.7,
        "high": 0.72,
        "n": 500,
        "seed": 3,
        "protocol": "singer",
        "dataset": "ethz/food101",
        "data_fingerprint": "abc",
        "num_parameters": 22_000_000,
    }
    return Result(**{**values, **changes})


# Outcomes


def test_figures_of_classified_images_are_those_of_scikit_learn_and_of_the_metrics():
    outcomes, logits = classified()
    labels, predictions = outcomes.labels, logits.argmax(dim=1)
    metrics = outcomes.metrics()
    assert metrics["top1"] == pytest.approx(accuracy_score(labels, predictions))
    assert metrics["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert outcomes.confusion().tolist() == confusion_matrix(labels, predictions).tolist()
    assert metrics == pytest.approx(divide_classification(count_classification(logits, labels)))


def test_a_weight_counts_an_image_as_often_as_it_says():
    outcomes, logits = classified(30)
    weights = torch.randint(0, 4, (30,), generator=RNG)
    repeated = logits.repeat_interleave(weights, dim=0)
    labels = outcomes.labels.repeat_interleave(weights)
    assert outcomes.metrics(weights) == pytest.approx(divide_classification(count_classification(repeated, labels)))


@pytest.mark.parametrize("task", [SegmentationTask(4), DepthTask(temperature=0.6)])
def test_weighted_images_of_dense_tasks_equal_repeated_ones(task):
    is_depth = isinstance(task, DepthTask)
    logits = torch.randn(5, 8 if is_depth else 4, 6, 6, generator=RNG)
    labels = torch.randint(1, 4, (5, 6, 6), generator=RNG)
    labels = labels.float() if is_depth else labels
    outcomes = CountedOutcomes([task.count(logits[[i]], labels[[i]]) for i in range(5)], task.divide)
    assert outcomes.metrics() == pytest.approx(task.divide(task.count(logits, labels)))
    weights = torch.tensor([0, 2, 1, 1, 1])
    rows = torch.arange(5).repeat_interleave(weights)
    assert outcomes.metrics(weights) == pytest.approx(task.divide(task.count(logits[rows], labels[rows])), rel=1e-5)


def test_the_long_tail_is_split_by_the_training_images():
    outcomes, _ = classified(num_classes=7, train_counts=torch.tensor([500, 300, 50, 40, 30, 5, 2]))
    assert {"top1_head", "top1_medium", "top1_tail"} <= set(outcomes.metrics())


# Intervals


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    low, high = bootstrap_intervals(hits(400, 300))["knn_top1"]
    deviation = (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(0.75 - 1.96 * deviation, abs=0.006)
    assert high == pytest.approx(0.75 + 1.96 * deviation, abs=0.006)


def test_more_images_give_a_narrower_interval_and_no_variation_none():
    few, many = (bootstrap_intervals(hits(n, n // 2), 300)["knn_top1"] for n in (40, 4000))
    assert many[1] - many[0] < 0.2 * (few[1] - few[0])
    assert bootstrap_intervals(hits(50, 50), 100)["knn_top1"] == (1.0, 1.0)


def test_the_interval_is_repeatable_by_its_seed():
    outcomes, _ = classified()
    assert bootstrap_intervals(outcomes, 50, seed=1) == bootstrap_intervals(outcomes, 50, seed=1)
    assert bootstrap_intervals(outcomes, 50, seed=1) != bootstrap_intervals(outcomes, 50, seed=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 0}, r"`resamples` must be at least 1, got 0"),
        ({"level": 1.0}, r"`level` must lie in \(0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(hits(4, 2), **options)


# Files


def test_results_json_holds_what_is_needed_to_repeat_a_figure(tmp_path):
    rows = [result(changes={"num_epochs": 3}), result(metric="ece", value=0.1, low=float("nan"), high=float("nan"))]
    write_results(tmp_path, rows)
    data = json.loads((tmp_path / "results.json").read_text())
    first, second = data["results"]
    expected = {"metric": "top1", "value": 0.71234, "low": 0.7, "high": 0.72, "n": 500, "seed": 3}
    assert expected.items() <= first.items()
    assert first["protocol"] == "singer"
    assert first["changes"] == {"num_epochs": 3}
    assert first["data_fingerprint"] == "abc"
    assert first["greater_is_better"] is True
    assert second["greater_is_better"] is False
    assert second["low"] is None  # JSON knows no NaN
    assert {"torch", "transformers", "singer-hf", "scikit-learn"} <= set(data["versions"])
    assert results_table(rows) in (tmp_path / "results.md").read_text()


def test_classes_are_reported_one_by_one(tmp_path):
    confusions = {"student": torch.tensor([[3, 1], [0, 0]]), "teacher": torch.tensor([[4, 0], [0, 0]])}
    write_per_class(tmp_path, get_benchmark("inat2019"), ["ant", "bee"], confusions)
    assert json.loads((tmp_path / "per_class_inat2019.json").read_text()) == [
        {"class": "ant", "n": 4, "student": 0.75, "teacher": 1.0},
        {"class": "bee", "n": 0, "student": None, "teacher": None},
    ]
    write_per_class(tmp_path, get_benchmark("camvid"), ["sky", "road"], confusions)
    assert json.loads((tmp_path / "per_class_camvid.json").read_text())[1]["student"] == 0.0  # called, never there


def test_nothing_is_written_without_figures(tmp_path):
    with pytest.raises(ValueError, match=r"`results` must hold at least one figure, got none"):
        write_results(tmp_path, [])


def test_the_table_has_a_row_per_model_and_a_column_per_benchmark():
    rows = [
        result(),
        result(metric="ece", value=0.1),
        result(benchmark="nyud-v2", task="depth", metric="rmse", value=0.9406, low=0.9, high=1.0),
        result(model="teacher", value=0.8, low=0.79, high=0.81, num_parameters=300_000_000),
    ]
    assert results_table(rows).splitlines() == [
        "| model | parameters | food101 top1 ↑ | nyud-v2 rmse ↓ |",
        "|---|---|---|---|",
        "| student | 22 M | 0.712 (0.700 to 0.720) | 0.941 (0.900 to 1.000) |",
        "| teacher | 300 M | 0.800 (0.790 to 0.810) | - |",
    ]
    assert "| student | food101 | ece ↓ | 0.1000 |" in all_metrics_table(rows)


def test_the_means_of_the_paper_are_added_where_all_members_were_run():
    rows = [result(benchmark="imagenet-r", value=0.2), result(benchmark="imagenet-v2", value=0.5)]
    lines = results_table(rows).splitlines()
    assert lines[0].endswith("| DS |")
    assert lines[2].endswith("| 0.350 |")


def test_figures_are_put_into_the_card_and_replace_older_ones(tmp_path):
    info = CardInfo(student_class="ViTModel", evaluations=[("depth", "nyuv2", "rmse", 1.2)])
    student_card(info).save(tmp_path / "README.md")
    text = ModelCard.load(tmp_path / "README.md").text
    write_to_card(tmp_path, [result(value=0.5), result(metric="ece", value=0.1)])
    write_to_card(tmp_path, [result(value=0.6)])
    card = ModelCard.load(tmp_path / "README.md")
    found = {(item.dataset_name, item.metric_type): item.metric_value for item in card.data.eval_results}
    assert found == {("nyuv2", "rmse"): 1.2, ("ethz/food101", "top1"): 0.6}
    assert "model-index" in (tmp_path / "README.md").read_text()
    assert card.text == text


def test_a_folder_without_a_card_is_refused(tmp_path):
    message = r"`folder` must be a student's folder with the README.md of its training"
    with pytest.raises(ValueError, match=message):
        write_to_card(tmp_path, [result()])
    (tmp_path / "README.md").write_text("# Someone else's model\n")
    with pytest.raises(ValueError, match=message):
        write_to_card(tmp_path, [result()])


# Figures


def test_the_confusion_matrix_names_classes_and_shows_shares(tmp_path):
    pytest.importorskip("matplotlib")
    figure = confusion_figure(torch.tensor([[3, 1], [0, 0]]), ["cat", "dog"], "pets")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert [text.get_text() for text in axes.texts] == ["75", "25"]
    figure.savefig(tmp_path / "confusion.png")
    confusion_figure(torch.eye(30), list(map(str, range(30)))).savefig(tmp_path / "large.png")


def test_masks_of_several_models_share_colours_and_the_legend_names_what_is_shown(tmp_path):
    pytest.importorskip("matplotlib")
    truth = torch.tensor([[0, 2], [255, 2]], dtype=torch.uint8)
    predictions = {"a": [torch.tensor([[0, 2], [2, 2]])], "b": [torch.zeros(2, 2, dtype=torch.long)]}
    figure = segmentation_figure([torch.rand(3, 4, 4)], [truth], predictions, ["sky", "road", "car"])
    assert [axes.get_title() for axes in figure.axes] == ["input", "truth", "a", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "car", "ignored"]
    painted = figure.axes[1].images[0].get_array()
    assert painted[0, 1].tolist() == pytest.approx(class_colours(3)[2].tolist(), abs=1e-6)
    assert painted[1, 0].tolist() == [0, 0, 0]
    figure.savefig(tmp_path / "masks.png")


def test_depth_maps_share_one_scale_and_leave_unmeasured_pixels_out(tmp_path):
    pytest.importorskip("matplotlib")
    truth = torch.tensor([[0.0, 2.0], [float("nan"), 4.0]])
    figure = depth_figure([torch.rand(3, 4, 4)], [truth], {"a": [torch.full((2, 2), 3.0)]}, max_depth=10.0)
    shown = [axes.images[0] for axes in figure.axes[1:3]]
    assert [image.get_clim() for image in shown] == [(0, 10.0), (0, 10.0)]
    assert torch.from_numpy(shown[0].get_array().filled(-1.0)).eq(-1.0).tolist() == [[True, False], [True, False]]
    figure.savefig(tmp_path / "depth.png")


def test_figures_against_size_show_every_model(tmp_path):
    pytest.importorskip("matplotlib")
    points = [("student", 5.7e6, 0.7, 0.68, 0.72), ("teacher", 3.0e8, 0.8, 0.79, 0.81)]
    figure = size_figure(points, "top1", "food101")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["student", "teacher"]
    assert axes.get_xscale() == "log"
    figure.savefig(tmp_path / "size.png")


def test_class_colours_differ():
    pytest.importorskip("matplotlib")
    assert len({tuple(colour) for colour in class_colours(150).tolist()}) == 150
