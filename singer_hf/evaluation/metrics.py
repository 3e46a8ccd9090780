"""The metrics of the four tasks as ``evaluate.Metric`` classes, and the formulas that turn counts into metrics."""

from typing import ClassVar

import datasets
import torch
from torch import Tensor

from singer_hf.evaluation.counting_metric import CountingMetric
from singer_hf.evaluation.counts import (
    Counts,
    count_classification,
    count_confusion,
    count_depth,
    top_classes,
)
from singer_hf.vit.inference import to_float64


class ClassificationMetric(CountingMetric):
    """Metrics of classified images; predictions are logits (B, C), references class indices (B,)."""

    description = "Top-1, top-5 and mean per-class accuracy and expected calibration error (ece), all in [0, 1]."
    directions: ClassVar = {"top1": True, "top5": True, "mean_class_accuracy": True, "ece": False}
    prediction_feature = datasets.Sequence(datasets.Value("float32"))

    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Counts logits (B, C) against class indices (B,)."""
        return count_classification(*top_classes(predictions), references, predictions.shape[1])

    @staticmethod
    def from_counts(counts: Counts) -> dict[str, float]:
        """Computes the metrics of a set."""
        confusion = counts["confusion"]
        return {
            "top1": accuracy(confusion),
            "top5": _ratio(counts["top5_hits"], confusion.sum()),
            "mean_class_accuracy": _mean_of_known(per_class_accuracy(confusion)),
            "ece": calibration_error(counts["calibration"]),
        }


class KnnMetric(CountingMetric):
    """Accuracy of nearest-neighbour votes; predictions and references are class indices (B,)."""

    description = "Top-1 accuracy of a vote of the nearest training images, in [0, 1]."
    directions: ClassVar = {"knn_top1": True}

    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Counts the hits among class indices (B,)."""
        hits = predictions == references
        return {"hits": hits.sum(), "images": torch.tensor(len(hits))}

    @staticmethod
    def from_counts(counts: Counts) -> dict[str, float]:
        """Computes the accuracy of a set."""
        return {"knn_top1": _ratio(counts["hits"], counts["images"])}


class SegmentationMetric(CountingMetric):
    """Metrics of predicted masks; predictions and references are masks (B, H, W) of class indices.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of the pixels that are left out.
        **kwargs: Arguments of ``evaluate.Metric``.
    """

    description = "Mean intersection over union of the whole set and pixel accuracy, both in [0, 1]."
    directions: ClassVar = {"mean_iou": True, "pixel_accuracy": True}
    prediction_feature = datasets.Array2D((None, 1), "int64")
    reference_feature = datasets.Array2D((None, 1), "int64")

    def __init__(self, num_classes: int, ignore_index: int | None = 255, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Confusion matrix of the masks (B, H, W)."""
        return {"confusion": count_confusion(predictions, references, self.num_classes, self.ignore_index)}

    @staticmethod
    def from_counts(counts: Counts) -> dict[str, float]:
        """Computes the metrics of a set."""
        return {"mean_iou": mean_iou(counts["confusion"]), "pixel_accuracy": accuracy(counts["confusion"])}


class DepthMetric(CountingMetric):
    """Errors of depth maps (B, H, W) in metres; references are 0 or NaN where there is no measurement.

    Args:
        max_depth: Largest depth in metres that counts.
        **kwargs: Arguments of ``evaluate.Metric``.
    """

    description = "Depth errors (rmse and sq_rel in metres, log10, abs_rel) and accuracies (delta1 to delta3)."
    directions: ClassVar = {
        **dict.fromkeys(("rmse", "log10", "abs_rel", "sq_rel"), False),
        **dict.fromkeys(("delta1", "delta2", "delta3"), True),
    }
    prediction_feature = datasets.Array2D((None, 1), "float32")
    reference_feature = datasets.Array2D((None, 1), "float32")

    def __init__(self, max_depth: float = 10.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.max_depth = max_depth

    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Sums of the errors of depth maps (B, H, W) over the valid pixels."""
        return count_depth(predictions, references, self.max_depth)

    @staticmethod
    def from_counts(counts: Counts) -> dict[str, float]:
        """Computes the metrics of a set.

        Raises:
            ValueError: If no pixel was valid.
        """
        if counts["pixels"] == 0:
            raise ValueError("`depth` must have valid pixels, got 0, NaN or values above `max_depth` everywhere")
        means = {name: _ratio(total, counts["pixels"]) for name, total in counts.items() if name != "pixels"}
        return {"rmse": means.pop("squared") ** 0.5, **means}


TASK_METRICS: dict[str, type[CountingMetric]] = {
    "classification": ClassificationMetric,
    "segmentation": SegmentationMetric,
    "depth": DepthMetric,
    "knn": KnnMetric,
}
_DIRECTIONS = {name: better for metric in TASK_METRICS.values() for name, better in metric.directions.items()}


def greater_is_better(name: str) -> bool:
    """Returns whether a greater value of the metric ``name`` is better; ``top1_tail`` etc. follow ``top1``.

    Raises:
        ValueError: If there is no such metric.
    """
    for known in (name, name.rpartition("_")[0]):
        if known in _DIRECTIONS:
            return _DIRECTIONS[known]
    raise ValueError(f"`name` must be one of {sorted(_DIRECTIONS)}, got {name!r}")


def accuracy(confusion: Tensor) -> float:
    """Share of the images or pixels on the diagonal of a confusion matrix (C, C), in [0, 1].

    Raises:
        ValueError: If nothing was counted.
    """
    return _ratio(confusion.diagonal().sum(), confusion.sum())


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Accuracy of each class, (C,) in [0, 1], from a confusion matrix (C, C); NaN for classes without samples."""
    confusion = to_float64(confusion)
    return confusion.diagonal() / confusion.sum(dim=1)


def accuracy_by_frequency(
    confusion: Tensor, train_counts: Tensor, head: int = 100, tail: int = 20
) -> dict[str, float]:
    """Top-1 accuracy on frequent, medium and rare classes: ``top1_head``, ``top1_medium``, ``top1_tail``.

    The borders are the many / medium / few-shot split of Liu et al., CVPR 2019 (arXiv:1904.05160): more than 100,
    20 to 100 and fewer than 20 training images. Groups without samples are left out.

    Args:
        confusion: Confusion matrix (C, C) of the test set.
        train_counts: Training images per class, (C,).
        head: Classes with more training images than this are frequent.
        tail: Classes with fewer training images than this are rare.

    Raises:
        ValueError: If ``train_counts`` does not hold one number per class.
    """
    if train_counts.shape != confusion.shape[:1]:
        raise ValueError(
            f"`train_counts` must be of shape {tuple(confusion.shape[:1])}, got {tuple(train_counts.shape)}"
        )
    groups = {"head": train_counts > head, "tail": train_counts < tail}
    groups["medium"] = ~(groups["head"] | groups["tail"])
    hits, totals = confusion.diagonal(), confusion.sum(dim=1)
    return {
        f"top1_{name}": _ratio(hits[members].sum(), totals[members].sum())
        for name, members in groups.items()
        if totals[members].sum() > 0
    }


def mean_iou(confusion: Tensor) -> float:
    """Mean intersection over union in [0, 1] of the classes that occur in the confusion matrix (C, C)."""
    return _mean_of_known(per_class_iou(confusion))


def per_class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, (C,), from a confusion matrix (C, C); NaN for classes that do not occur.

    A class occurs if it was predicted or is the truth somewhere.
    """
    confusion = to_float64(confusion)
    hits = confusion.diagonal()
    return hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)


def calibration_error(calibration: Tensor) -> float:
    """Expected calibration error in [0, 1] from a calibration histogram (bins, 3).

    It is the mean of the bins' |accuracy - confidence|, weighted by their number of images. Source: Guo et al.,
    ICML 2017, arXiv:1706.04599, equation 3.
    """
    samples, confidence, hits = calibration.unbind(dim=1)
    return _ratio((hits - confidence).abs().sum(), samples.sum())


def _ratio(part: Tensor, total: Tensor) -> float:
    if total == 0:
        raise ValueError("the set must hold at least one sample that counts, got none: it is empty or all ignored")
    return float(part) / float(total)


def _mean_of_known(values: Tensor) -> float:
    known = values[~values.isnan()]
    return _ratio(known.sum(), torch.tensor(len(known)))
