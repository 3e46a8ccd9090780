"""Metrics against values written out and against scikit-learn; counts of parts add up to the counts of the whole."""

import numpy as np
import pytest
import sklearn.metrics
import torch

from singer_hf.evaluation import metrics
from singer_hf.evaluation.counts import add_counts, count_calibration, count_confusion, count_depth
from singer_hf.evaluation.metrics import TASK_METRICS, ClassificationMetric, DepthMetric, KnnMetric, SegmentationMetric


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def scores(rng):
    labels = torch.randint(0, 7, (200,), generator=rng)
    return torch.randn(200, 7, generator=rng), labels


def test_confusion_has_the_truth_in_rows():
    counts = count_confusion(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 255]), 3, ignore_index=255)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_weights_count_a_label_as_often_as_it_occurs(rng):
    predictions, labels, weights = (torch.randint(0, 3, (40,), generator=rng) for _ in range(3))
    repeated = count_confusion(predictions.repeat_interleave(weights), labels.repeat_interleave(weights), 3)
    assert count_confusion(predictions, labels, 3, weights=weights).tolist() == repeated.tolist()
    weighted = count_confusion(predictions, labels, 3, ignore_index=2, weights=weights)
    assert weighted[:2].tolist() == repeated[:2].tolist()
    assert (weighted[2] == 0).all()


def test_classification_equals_scikit_learn(scores):
    logits, labels = scores
    values = ClassificationMetric().compute(predictions=logits, references=labels)
    predicted, classes = logits.argmax(1).numpy(), np.arange(7)
    assert values["top1"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert values["top5"] == pytest.approx(sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=classes))
    assert values["mean_class_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predicted))
    confusion = count_confusion(logits.argmax(1), labels, 7)
    assert (confusion.numpy() == sklearn.metrics.confusion_matrix(labels, predicted, labels=classes)).all()


def test_mean_iou_equals_the_jaccard_score_of_scikit_learn(scores):
    logits, labels = scores
    confusion = count_confusion(logits.argmax(1), labels, 7)
    expected = sklearn.metrics.jaccard_score(labels, logits.argmax(1), average="macro")
    assert metrics.mean_iou(confusion) == pytest.approx(expected)


def test_mean_iou_leaves_out_classes_absent_from_prediction_and_truth():
    confusion = count_confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1]), 5)
    # Class 0: 2 / 2, class 1: 1 / 2, class 2 only predicted: 0 / 1, classes 3 and 4 absent.
    assert metrics.mean_iou(confusion) == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics.per_class_iou(confusion).isnan().tolist() == [False, False, False, True, True]
    assert metrics.accuracy(confusion) == 0.75


def test_metrics_of_a_set_are_no_means_of_batch_means(scores):
    logits, labels = scores
    metric = ClassificationMetric()
    whole = metric.count(logits, labels)
    parts = {}
    for part in (slice(0, 3), slice(3, 150), slice(150, 200)):
        parts = add_counts(parts, metric.count(logits[part], labels[part]))
    assert metric.from_counts(parts) == pytest.approx(metric.from_counts(whole))


def test_depth_errors_equal_values_written_out():
    depth = torch.tensor([[2.0, 4.0], [0.0, float("nan")]])
    predicted = torch.tensor([[1.0, 5.0], [9.0, 9.0]])
    values = DepthMetric.from_counts(count_depth(predicted, depth))
    assert values == pytest.approx(
        {
            "rmse": 1.0,
            "log10": (np.log10(2) + np.log10(1.25)) / 2,
            "abs_rel": (0.5 + 0.25) / 2,
            "sq_rel": (0.5 + 0.25) / 2,
            "delta1": 0.0,  # 5 / 4 is not below 1.25
            "delta2": 0.5,
            "delta3": 0.5,
        }
    )


def test_depth_beyond_the_largest_does_not_count_and_predictions_are_clamped():
    counts = count_depth(torch.tensor([-3.0, 20.0]), torch.tensor([1.0, 11.0]), max_depth=10.0)
    assert counts["pixels"] == 1
    assert DepthMetric.from_counts(counts)["rmse"] == pytest.approx(1.0 - 1e-3)


def test_calibration_error_equals_the_value_written_out():
    confidences, hits = torch.tensor([0.9, 0.9, 0.6]), torch.tensor([True, False, True])
    error = metrics.calibration_error(count_calibration(confidences, hits, num_bins=10))
    assert error == pytest.approx((2 * abs(0.5 - 0.9) + abs(1.0 - 0.6)) / 3, abs=1e-6)


def test_accuracy_is_split_by_the_frequency_of_the_training_classes():
    confusion = torch.tensor([[8, 2, 0], [5, 5, 0], [3, 0, 1]])
    values = metrics.accuracy_by_frequency(confusion, torch.tensor([500, 100, 19]))
    assert values == {"top1_head": 0.8, "top1_medium": 0.5, "top1_tail": 0.25}
    assert metrics.accuracy_by_frequency(confusion, torch.tensor([500, 200, 101])).keys() == {"top1_head"}


@pytest.mark.parametrize(
    ("name", "better"), [("top1", True), ("top1_tail", True), ("mean_iou", True), ("rmse", False)]
)
def test_every_metric_has_a_direction(name, better):
    assert metrics.greater_is_better(name) is better


def test_an_unknown_metric_has_no_direction():
    with pytest.raises(ValueError, match=r"`name` must be one of .*'rmse'.*, got 'loss'"):
        metrics.greater_is_better("loss")


def test_labels_out_of_range_are_named():
    with pytest.raises(ValueError, match="`labels` must be within 0 and 2 or the ignored 255, got 7"):
        count_confusion(torch.tensor([0, 1]), torch.tensor([255, 7]), 3, ignore_index=255)
    with pytest.raises(ValueError, match="`labels` must be within 0 and 6, got -1"):
        ClassificationMetric().count(torch.zeros(2, 7), torch.tensor([0, -1]))


def test_sets_without_anything_that_counts_are_refused():
    ignored = SegmentationMetric(3).count(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 255))
    with pytest.raises(
        ValueError, match="must hold at least one sample that counts, got none: it is empty or all ignor"
    ):
        SegmentationMetric.from_counts(ignored)
    unmeasured = count_depth(torch.ones(2, 2), torch.tensor([[0.0, float("nan")], [0.0, 11.0]]))
    with pytest.raises(
        ValueError, match="`depth` must have valid pixels, got 0, NaN or values above `max_depth` every"
    ):
        DepthMetric.from_counts(unmeasured)


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"of the shape of the labels \(1, 4, 4\), got \(1, 2, 2\)"):
        count_confusion(torch.zeros(1, 2, 2), torch.zeros(1, 4, 4), 3)


def test_evaluate_metrics_work_offline_and_count_over_batches(scores, tmp_path):
    logits, labels = scores
    metric = ClassificationMetric(cache_dir=str(tmp_path))
    metric.add_batch(predictions=logits[:50], references=labels[:50])
    metric.add_batch(predictions=logits[50:150].tolist(), references=labels[50:150].tolist())
    values = metric.compute(predictions=logits[150:].numpy(), references=labels[150:].numpy())
    assert values == pytest.approx(ClassificationMetric().compute(predictions=logits, references=labels))
    with pytest.raises(ValueError, match="`compute` must follow `add_batch`"):
        metric.compute()


def test_the_knn_metric_is_the_share_of_hits():
    metric = KnnMetric()
    metric.add_batch(predictions=[0, 1, 1], references=[0, 1, 2])
    assert metric.compute(predictions=[2], references=[2]) == {"knn_top1": 0.75}


@pytest.mark.parametrize(("task", "main"), [("classification", "top1"), ("segmentation", "mean_iou")])
def test_a_metric_describes_itself_by_the_info_of_evaluate(task, main):
    metric = SegmentationMetric(3) if task == "segmentation" else TASK_METRICS[task]()
    assert metric.main_metric() == main
    assert metric.info.description == TASK_METRICS[task].description


def test_metrics_make_no_folder_in_the_cache(tmp_path):
    ClassificationMetric(cache_dir=str(tmp_path)).compute(predictions=torch.eye(3), references=torch.arange(3))
    assert list(tmp_path.iterdir()) == []


def test_single_samples_add_up():
    metric = SegmentationMetric(3)
    metric.add(prediction=torch.tensor([[0, 1]]), reference=torch.tensor([[0, 255]]))
    metric.add(prediction=torch.tensor([[2, 1]]), reference=torch.tensor([[1, 1]]))
    assert metric.compute() == pytest.approx({"mean_iou": (1 + 0.5 + 0) / 3, "pixel_accuracy": 2 / 3})


def test_the_depth_metric_is_limited_to_its_largest_depth(tmp_path):
    metric = DepthMetric(max_depth=5.0, cache_dir=str(tmp_path))
    values = metric.compute(predictions=[[[1.0, 9.0]]], references=[[[2.0, 8.0]]])
    assert values["rmse"] == 1.0
