"""What was measured image by image, and the 95 % interval that says how much other test images could change it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from singer_hf.evaluation.metrics import Counts, accuracy_by_frequency, add_counts, divide_classification

_CALIBRATION_BINS = 15


class Outcomes(Protocol):
    """What happened on each test image."""

    def __len__(self) -> int: ...

    def metrics(self, weights: Tensor | None = None) -> dict[str, float]:
        """Figures of the set in which image i occurs ``weights[i]`` times; None counts every image once."""


@dataclass(frozen=True)
class ClassificationOutcomes:
    """Classified images.

    Attributes:
        labels: Class indices (N,).
        top5: The five best classes of each image, best first, (N, 5) or fewer.
        confidences: Probability of the best class, (N,).
        num_classes: Number C of classes.
        train_counts: Training images per class (C,), to also split the accuracy by frequency; None leaves that out.
    """

    labels: Tensor
    top5: Tensor
    confidences: Tensor
    num_classes: int
    train_counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def confusion(self, weights: Tensor | None = None) -> Tensor:
        """Confusion matrix (C, C) in float64: rows are the truth."""
        weights = torch.ones(len(self)) if weights is None else weights
        cells = self.labels * self.num_classes + self.top5[:, 0]
        counts = torch.bincount(cells, weights=weights.double(), minlength=self.num_classes**2)
        return counts.reshape(self.num_classes, self.num_classes)

    def metrics(self, weights: Tensor | None = None) -> dict[str, float]:
        """``top1``, ``top5``, ``mean_class_accuracy``, ``ece``, and ``top1_head`` etc. with ``train_counts``."""
        weights = torch.ones(len(self), dtype=torch.double) if weights is None else weights.double()
        confusion = self.confusion(weights)
        hits = self.top5 == self.labels[:, None]
        bins = (self.confidences.double() * _CALIBRATION_BINS).ceil().long().clamp(1, _CALIBRATION_BINS) - 1
        rows = torch.stack([torch.ones_like(weights), self.confidences.double(), hits[:, 0].double()], dim=1)
        histogram = torch.zeros(_CALIBRATION_BINS, 3, dtype=torch.double)
        counts = {
            "confusion": confusion,
            "top5_hits": (weights * hits.any(dim=1)).sum(),
            "calibration": histogram.index_add_(0, bins, rows * weights[:, None]),
        }
        metrics = divide_classification(counts)
        if self.train_counts is not None:
            metrics.update(accuracy_by_frequency(confusion, self.train_counts))
        return metrics


class CountedOutcomes:
    """Images of which sums were counted: pixels by class, squared errors, hits.

    Args:
        counts: Counts of each image, all of the same keys and shapes.
        divide: Sums of a set -> metrics, such as ``SegmentationTask.divide``.
    """

    def __init__(self, counts: Sequence[Counts], divide: Callable[[Counts], dict[str, float]]) -> None:
        self.divide = divide
        self._shapes = {key: torch.as_tensor(value).shape for key, value in counts[0].items()}
        # The rows in float32, as a confusion of 150 classes takes 90 kB an image: only resampled sets are summed from
        # them. The sum of all images keeps its type.
        self._rows = {
            key: torch.stack([torch.as_tensor(item[key]).float().flatten() for item in counts]) for key in self._shapes
        }
        self._total: Counts = {}
        for item in counts:
            self._total = add_counts(self._total, item)

    def __len__(self) -> int:
        return len(next(iter(self._rows.values())))

    def total(self) -> Counts:
        """Sums of all images."""
        return self._total

    def metrics(self, weights: Tensor | None = None) -> dict[str, float]:
        """The metrics of ``divide``."""
        if weights is None:
            return self.divide(self._total)
        sums = {key: (weights.float() @ rows).double() for key, rows in self._rows.items()}
        return self.divide({key: value.reshape(self._shapes[key]) for key, value in sums.items()})


def knn_outcomes(scores: Tensor, labels: Tensor) -> CountedOutcomes:
    """Outcomes of a nearest-neighbour vote with class scores (N, C): figure ``knn_top1``."""
    hits = (scores.argmax(dim=1) == labels).double()
    return CountedOutcomes([{"hits": hit, "images": torch.ones(())} for hit in hits], _knn_metrics)


def bootstrap_intervals(
    outcomes: Outcomes, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile interval of every figure over test sets of the same size drawn with replacement.

    It says what other test images could change, not what another seed of the training would. Source: Efron, Annals of
    Statistics 7 (1979).

    Args:
        outcomes: What happened on each image.
        resamples: Number of drawn sets, at least 1.
        seed: Seed of the draws.
        level: Share of the drawn sets within the interval, in (0, 1).

    Returns:
        Name of the figure -> (low, high).

    Raises:
        ValueError: If ``resamples`` or ``level`` is out of range.
    """
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples!r}")
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level!r}")
    generator, number = torch.Generator().manual_seed(seed), len(outcomes)
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        rows = torch.randint(number, (number,), generator=generator)
        for name, value in outcomes.metrics(torch.bincount(rows, minlength=number)).items():
            drawn.setdefault(name, []).append(value)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)
    return {
        name: tuple(torch.quantile(torch.tensor(values, dtype=torch.double), ends).tolist())
        for name, values in drawn.items()
    }


def _knn_metrics(counts: Counts) -> dict[str, float]:
    return {"knn_top1": float(counts["hits"] / counts["images"])}
