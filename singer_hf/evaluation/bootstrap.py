"""Outcomes of single test images, and 95 % intervals over them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from singer_hf.evaluation.counts import Counts, add_counts, count_classification, count_confusion
from singer_hf.evaluation.metrics import ClassificationMetric, KnnMetric, accuracy_by_frequency


class Outcomes(Protocol):
    """Outcome of each test image, from which the metrics of any resampled set follow."""

    def __len__(self) -> int: ...

    def metrics(self, weights: Tensor | None = None) -> dict[str, float]:
        """Metrics of the set in which image i occurs ``weights[i]`` times, (N,); None counts every image once."""


@dataclass(frozen=True)
class ClassificationOutcomes:
    """Outcomes of classified images.

    Attributes:
        labels: Class indices (N,).
        top5: The five best classes of each image, best first, (N, 5) or fewer.
        confidences: Probability of the best class, (N,).
        num_classes: Number C of classes.
        train_counts: Training images per class (C,), for the accuracy by frequency; None leaves that out.
    """

    labels: Tensor
    top5: Tensor
    confidences: Tensor
    num_classes: int
    train_counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def confusion(self) -> Tensor:
        """Confusion matrix (C, C): rows are the true classes."""
        return count_confusion(self.top5[:, 0], self.labels, self.num_classes)

    def metrics(self, weights: Tensor | None = None) -> dict[str, float]:
        """Metrics of :class:`ClassificationMetric` and, with ``train_counts``, of :func:`accuracy_by_frequency`.

        Args:
            weights: How often each image counts, (N,); None counts every image once.
        """
        counts = count_classification(self.top5, self.confidences, self.labels, self.num_classes, weights)
        metrics = ClassificationMetric.from_counts(counts)
        if self.train_counts is not None:
            metrics.update(accuracy_by_frequency(counts["confusion"], self.train_counts))
        return metrics


class CountedOutcomes:
    """Outcomes of images as counts: pixels by class, squared errors, hits.

    Args:
        counts: Counts of each image, all of the same keys and shapes.
        from_counts: Function from the counts of a set to its metrics, such as ``DepthMetric.from_counts``.
    """

    def __init__(self, counts: Sequence[Counts], from_counts: Callable[[Counts], dict[str, float]]) -> None:
        self.from_counts = from_counts
        self._shapes = {key: torch.as_tensor(value).shape for key, value in counts[0].items()}
        # The rows are float32, as a confusion matrix of 150 classes takes 90 kB per image; they are summed for
        # resampled sets only. The sum over all images keeps its type.
        self._rows = {
            key: torch.stack([torch.as_tensor(item[key]).float().flatten() for item in counts]) for key in self._shapes
        }
        self._total: Counts = {}
        for item in counts:
            self._total = add_counts(self._total, item)

    def __len__(self) -> int:
        return len(next(iter(self._rows.values())))

    def total(self) -> Counts:
        """Sums over all images."""
        return self._total

    def metrics(self, weights: Tensor | None = None) -> dict[str, float]:
        """Metrics of the set.

        Args:
            weights: How often each image counts, (N,); None counts every image once.
        """
        if weights is None:
            return self.from_counts(self._total)
        sums = {key: (weights.float() @ rows).double() for key, rows in self._rows.items()}
        return self.from_counts({key: value.reshape(self._shapes[key]) for key, value in sums.items()})


def knn_outcomes(scores: Tensor, labels: Tensor) -> CountedOutcomes:
    """Outcomes of nearest-neighbour votes.

    Args:
        scores: Class scores (N, C).
        labels: Class indices (N,).
    """
    metric, predictions = KnnMetric(), scores.argmax(dim=1)
    counts = [metric.count(*pair) for pair in zip(predictions.split(1), labels.split(1), strict=True)]
    return CountedOutcomes(counts, KnnMetric.from_counts)


def bootstrap_intervals(
    outcomes: Outcomes, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile interval of every metric over test sets of the same size, drawn with replacement.

    The interval covers the choice of the test images, not the seed of the training. Source: Efron, Annals of
    Statistics 7 (1979).

    Args:
        outcomes: Outcomes of the test images.
        resamples: Number of drawn sets, at least 1.
        seed: Seed of the draws.
        level: Share of the drawn sets within the interval, in (0, 1).

    Returns:
        Name of the metric -> (low, high).

    Raises:
        ValueError: If ``resamples`` or ``level`` is out of range.
    """
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples!r}")
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level!r}")
    generator, number = torch.Generator().manual_seed(seed), len(outcomes)
    drawn: dict[str, list[float]] = {}
    # No `scipy.stats.bootstrap`: as fast, but it refuses sets of one image and metrics that some draws do not have.
    for _ in range(resamples):
        rows = torch.randint(number, (number,), generator=generator)
        for name, value in outcomes.metrics(torch.bincount(rows, minlength=number)).items():
            drawn.setdefault(name, []).append(value)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)
    return {
        name: tuple(torch.quantile(torch.tensor(values, dtype=torch.double), ends).tolist())
        for name, values in drawn.items()
    }


def accuracy_interval(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy of which only the number of images is known (Wilson's score interval).

    Args:
        accuracy: Share of the images that are right, in [0, 1].
        n: Number of images, at least 1.
    """
    z = 1.96
    center = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)
