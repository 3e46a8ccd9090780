"""The metrics as ``evaluate.Metric`` objects that need no network: instantiate them, ``evaluate.load`` is not used.

They count batch by batch instead of writing every prediction to a cache file, so a set of any size fits, and the
counts of several processes can be added with :meth:`CountingMetric.merge`.
"""

from abc import abstractmethod

import datasets
import evaluate
import torch
from torch import Tensor

from singer_hf.evaluation.metrics import (
    GREATER_IS_BETTER,
    Counts,
    add_counts,
    count_classification,
    count_confusion,
    count_depth,
    divide_classification,
    divide_depth,
    divide_segmentation,
)


class CountingMetric(evaluate.Metric):
    """An ``evaluate.Metric`` that keeps sums; subclasses say how to count a batch and how to divide.

    Attributes:
        counts: Sums so far; empty before the first batch and after :meth:`compute`.
    """

    description: str
    prediction_feature: object
    reference_feature: object

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.counts: Counts = {}

    @abstractmethod
    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Sums of one batch."""

    @abstractmethod
    def divide(self, counts: Counts) -> dict[str, float]:
        """Figures of the whole set."""

    def add_batch(self, *, predictions: object = None, references: object = None) -> None:
        """Counts one batch of arrays, lists or tensors."""
        batch = self.count(torch.as_tensor(predictions), torch.as_tensor(references))
        self.counts = add_counts(self.counts, batch)

    def add(self, *, prediction: object = None, reference: object = None) -> None:
        """Counts one sample."""
        prediction, reference = torch.as_tensor(prediction), torch.as_tensor(reference)
        self.add_batch(predictions=prediction[None], references=reference[None])

    def merge(self, counts: Counts) -> None:
        """Adds the ``counts`` of another process."""
        self.counts = add_counts(self.counts, counts)

    def compute(self, *, predictions: object = None, references: object = None) -> dict[str, float]:
        """Figures over everything counted, the given batch included; starts anew afterwards.

        Raises:
            ValueError: If nothing was counted.
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self.counts:
            raise ValueError(
                "`compute` must follow `add_batch` or be given `predictions` and `references`, got nothing"
            )
        counts, self.counts = self.counts, {}
        return self.divide(counts)

    def greater_is_better(self) -> dict[str, bool]:
        """Direction of every metric name this package knows."""
        return dict(GREATER_IS_BETTER)

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": self.prediction_feature, "references": self.reference_feature}
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=self.description,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: object, references: object) -> dict[str, float]:
        return self.divide(self.count(torch.as_tensor(predictions), torch.as_tensor(references)))


class ClassificationMetric(CountingMetric):
    """``top1``, ``top5``, ``mean_class_accuracy``, ``ece``; predictions are logits (B, C), references classes (B,)."""

    description = "Top-1, top-5 and mean per-class accuracy and expected calibration error, all in [0, 1]."
    prediction_feature = datasets.Sequence(datasets.Value("float32"))
    reference_feature = datasets.Value("int64")

    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Sums of logits (B, C) against classes (B,)."""
        return count_classification(predictions, references)

    def divide(self, counts: Counts) -> dict[str, float]:
        """Figures of the whole set."""
        return divide_classification(counts)


class SegmentationMetric(CountingMetric):
    """``mean_iou`` and ``pixel_accuracy``; predictions and references are masks (B, H, W) of class indices.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of pixels that do not count.
        **kwargs: Arguments of ``evaluate.Metric``.
    """

    description = "Mean intersection over union of the whole set and pixel accuracy, both in [0, 1]."
    prediction_feature = datasets.Array2D((None, 1), "int64")
    reference_feature = datasets.Array2D((None, 1), "int64")

    def __init__(self, num_classes: int, ignore_index: int | None = 255, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Confusion of the masks."""
        return {"confusion": count_confusion(predictions, references, self.num_classes, self.ignore_index)}

    def divide(self, counts: Counts) -> dict[str, float]:
        """Figures of the whole set."""
        return divide_segmentation(counts)


class DepthMetric(CountingMetric):
    """``rmse`` and its kin; predictions and references are depth maps (B, H, W) in metres, 0 or NaN where unmeasured.

    Args:
        max_depth: Largest depth in metres that counts.
        **kwargs: Arguments of ``evaluate.Metric``.
    """

    description = "Depth errors (rmse in metres, log10, abs_rel, sq_rel) and accuracies (delta1 to delta3)."
    prediction_feature = datasets.Array2D((None, 1), "float32")
    reference_feature = datasets.Array2D((None, 1), "float32")

    def __init__(self, max_depth: float = 10.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.max_depth = max_depth

    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Sums of errors over valid pixels."""
        return count_depth(predictions, references, self.max_depth)

    def divide(self, counts: Counts) -> dict[str, float]:
        """Figures of the whole set."""
        return divide_depth(counts)
