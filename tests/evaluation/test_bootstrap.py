"""Outcomes of test images and their bootstrap intervals."""

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from singer_hf.evaluation.bootstrap import (
    ClassificationOutcomes,
    CountedOutcomes,
    bootstrap_intervals,
    knn_outcomes,
)
from singer_hf.evaluation.heads.tasks import DepthTask, SegmentationTask
from singer_hf.evaluation.metrics import ClassificationMetric

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


def test_metrics_of_classified_images_equal_those_of_scikit_learn_and_of_the_metric():
    outcomes, logits = classified()
    labels, predictions = outcomes.labels, logits.argmax(dim=1)
    metrics = outcomes.metrics()
    assert metrics["top1"] == pytest.approx(accuracy_score(labels, predictions))
    assert metrics["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert outcomes.confusion().tolist() == confusion_matrix(labels, predictions).tolist()
    assert metrics == pytest.approx(ClassificationMetric().compute(predictions=logits, references=labels))


def test_a_weight_is_the_number_of_times_an_image_counts():
    outcomes, logits = classified(30)
    weights = torch.randint(0, 4, (30,), generator=RNG)
    repeated = logits.repeat_interleave(weights, dim=0)
    labels = outcomes.labels.repeat_interleave(weights)
    expected = ClassificationMetric().compute(predictions=repeated, references=labels)
    assert outcomes.metrics(weights) == pytest.approx(expected)


@pytest.mark.parametrize("task", [SegmentationTask(4), DepthTask(temperature=0.6)])
def test_weighted_images_of_dense_tasks_equal_repeated_ones(task):
    is_depth = isinstance(task, DepthTask)
    logits = torch.randn(5, 8 if is_depth else 4, 6, 6, generator=RNG)
    labels = torch.randint(1, 4, (5, 6, 6), generator=RNG)
    labels = labels.float() if is_depth else labels
    metric, predictions = task.new_metric(), task.predict(logits, labels)
    outcomes = CountedOutcomes([metric.count(predictions[[i]], labels[[i]]) for i in range(5)], metric.from_counts)
    assert outcomes.metrics() == pytest.approx(metric.compute(predictions=predictions, references=labels))
    weights = torch.tensor([0, 2, 1, 1, 1])
    rows = torch.arange(5).repeat_interleave(weights)
    expected = metric.compute(predictions=predictions[rows], references=labels[rows])
    assert outcomes.metrics(weights) == pytest.approx(expected, rel=1e-5)


def test_the_long_tail_is_split_by_the_training_images():
    outcomes, _ = classified(num_classes=7, train_counts=torch.tensor([500, 300, 50, 40, 30, 5, 2]))
    assert {"top1_head", "top1_medium", "top1_tail"} <= set(outcomes.metrics())


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
