"""Base class of the metrics: an ``evaluate.Metric`` that adds up counts.

It needs no network: ``evaluate.load`` is not used. It adds up counts batch by batch and writes no predictions to a
cache file, so that a set of any size fits in memory.
"""

from abc import abstractmethod
from typing import ClassVar

import datasets
import evaluate
import torch
from torch import Tensor

from singer_hf.evaluation.counts import Counts, add_counts


class CountingMetric(evaluate.Metric):
    """An ``evaluate.Metric`` that adds up counts; a subclass defines the counts of a batch and the metrics of a set.

    Attributes:
        description: What the metrics are, in one sentence.
        directions: Name of each metric -> whether greater is better; the first one is the main metric.
        counts: Counts so far; empty before the first batch and after :meth:`compute`.
    """

    description: ClassVar[str]
    directions: ClassVar[dict[str, bool]]
    prediction_feature: ClassVar[object] = datasets.Value("int64")
    reference_feature: ClassVar[object] = datasets.Value("int64")

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.counts: Counts = {}

    @classmethod
    def main_metric(cls) -> str:
        """Returns the name of the metric that stands for all of them."""
        return next(iter(cls.directions))

    @abstractmethod
    def count(self, predictions: Tensor, references: Tensor) -> Counts:
        """Counts one batch: predictions and references of shape (B,), (B, C) or (B, H, W)."""

    @staticmethod
    @abstractmethod
    def from_counts(counts: Counts) -> dict[str, float]:
        """Computes the metrics of a set from its counts."""

    def add_batch(self, *, predictions: object = None, references: object = None) -> None:
        """Counts one batch of arrays, lists or tensors."""
        batch = self.count(torch.as_tensor(predictions), torch.as_tensor(references))
        self.counts = add_counts(self.counts, batch)

    def add(self, *, prediction: object = None, reference: object = None) -> None:
        """Counts one sample."""
        prediction, reference = torch.as_tensor(prediction), torch.as_tensor(reference)
        self.add_batch(predictions=prediction[None], references=reference[None])

    def compute(self, *, predictions: object = None, references: object = None) -> dict[str, float]:
        """Computes the metrics over everything counted, the given batch included, and resets the counts.

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
        return self.from_counts(counts)

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": self.prediction_feature, "references": self.reference_feature}
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=self.description,
            features=datasets.Features(features),
        )

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # nothing is written, so no folder is made
