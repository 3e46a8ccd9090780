"""Counts of evaluated batches, which add up over batches, workers and processes.

:mod:`singer_hf.evaluation.metrics` turns the counts of a whole set into metrics, so that a metric is never a mean of
batch means.
"""

import torch
from torch import Tensor

from singer_hf.evaluation.label_checks import check_classes
from singer_hf.vit.inference import to_float64

Counts = dict[str, Tensor]

_CALIBRATION_BINS = 15
_DELTA = 1.25


def add_counts(first: Counts, second: Counts) -> Counts:
    """Adds the counts of two parts of a set, key by key; an empty dict holds no counts yet."""
    if not first or not second:
        return dict(first or second)
    return {key: first[key] + second[key] for key in first}


def count_confusion(
    predictions: Tensor,
    labels: Tensor,
    num_classes: int,
    ignore_index: int | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Confusion matrix (C, C): rows are the true classes, columns the predicted ones.

    Equals ``sklearn.metrics.confusion_matrix``, which takes six times as long on pixels and runs on the CPU only, and
    ``torchmetrics.functional``, which would be a further dependency for one ``bincount``.

    Args:
        predictions: Class indices of any shape (...).
        labels: Class indices of the same shape (...).
        num_classes: Number C of classes.
        ignore_index: Label that is left out, if there is one.
        weights: How often each label counts, of the same shape (...); None counts every label once.

    Returns:
        The matrix in int64, with ``weights`` in float64.

    Raises:
        ValueError: If the shapes differ or a label or prediction is out of range.
    """
    _check_same_shape(predictions, labels)
    predictions, labels = predictions.flatten().long(), labels.flatten().long()
    weights = None if weights is None else weights.flatten().double()
    if ignore_index is not None:
        kept = labels != ignore_index
        predictions, labels = predictions[kept], labels[kept]
        weights = None if weights is None else weights[kept]
    check_classes(labels, num_classes, "labels", ignore_index)
    check_classes(predictions, num_classes, "predictions")
    cells = torch.bincount(labels * num_classes + predictions, weights=weights, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def count_calibration(
    confidences: Tensor, hits: Tensor, weights: Tensor | None = None, num_bins: int = _CALIBRATION_BINS
) -> Tensor:
    """Calibration histogram (bins, 3): number of images, sum of confidences and number of hits in each bin.

    Args:
        confidences: Probability of the predicted class, (B,).
        hits: Whether the prediction is right, (B,).
        weights: How often each image counts, (B,); None counts every image once.
        num_bins: Number of equal bins of confidence over (0, 1]; a border belongs to the bin below it.
    """
    confidences = to_float64(confidences)
    index = (confidences * num_bins).ceil().long().clamp(1, num_bins) - 1
    rows = torch.stack([torch.ones_like(confidences), confidences, to_float64(hits)], dim=1)
    if weights is not None:
        rows = rows * to_float64(weights)[:, None]
    return torch.zeros(num_bins, 3, dtype=torch.double, device=rows.device).index_add_(0, index, rows)


def count_classification(
    top: Tensor, confidences: Tensor, labels: Tensor, num_classes: int, weights: Tensor | None = None
) -> Counts:
    """Counts of classified images: confusion matrix, top-5 hits and calibration histogram.

    Args:
        top: The best classes of each image, best first, (B, 5) or fewer; see :func:`top_classes`.
        confidences: Probability of the best class, (B,).
        labels: Class indices (B,).
        num_classes: Number C of classes.
        weights: How often each image counts, (B,); None counts every image once.

    Raises:
        ValueError: If a label is out of range.
    """
    hits = top == labels[:, None]
    found = hits.any(dim=1)
    return {
        "confusion": count_confusion(top[:, 0], labels, num_classes, weights=weights),
        "top5_hits": found.sum() if weights is None else (weights.double() * found).sum(),
        "calibration": count_calibration(confidences, hits[:, 0], weights),
    }


def top_classes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The five best classes (B, 5), best first, and the probability of the best one (B,), from logits (B, C)."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices, logits.float().softmax(dim=1).amax(dim=1)


def count_depth(predictions: Tensor, depth: Tensor, max_depth: float = 10.0, min_depth: float = 1e-3) -> Counts:
    """Sums of depth errors over the valid pixels of a batch (Eigen et al., NeurIPS 2014, arXiv:1406.2283).

    Args:
        predictions: Predicted depth (...) in metres; clamped to [``min_depth``, ``max_depth``].
        depth: Measured depth (...) in metres, of the same shape; 0, NaN and infinity mark missing measurements.
        max_depth: Largest depth in metres that counts.
        min_depth: Smallest predicted depth in metres, which keeps logarithms and ratios finite.

    Raises:
        ValueError: If the shapes differ or a prediction is not finite.
    """
    _check_same_shape(predictions, depth)
    valid = valid_depth(depth, max_depth)
    predicted, true = to_float64(predictions[valid]).clamp(min_depth, max_depth), to_float64(depth[valid])
    if not torch.isfinite(predicted).all():
        raise ValueError("`predictions` must be finite, got NaN; the head diverged, so lower its learning rate")
    error, ratio = predicted - true, torch.maximum(predicted / true, true / predicted)
    sums = {
        "squared": error.square(),
        "log10": (predicted.log10() - true.log10()).abs(),
        "abs_rel": error.abs() / true,
        "sq_rel": error.square() / true,
        **{f"delta{power}": (ratio < _DELTA**power).double() for power in (1, 2, 3)},
    }
    return {"pixels": to_float64(valid.sum()), **{name: values.sum() for name, values in sums.items()}}


def valid_depth(depth: Tensor, max_depth: float) -> Tensor:
    """Mask (...) of the pixels of ``depth`` (...) that are finite, above 0 and at most ``max_depth`` metres."""
    return torch.isfinite(depth) & (depth > 0) & (depth <= max_depth)


def _check_same_shape(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape:
        raise ValueError(
            f"`predictions` must be of the shape of the labels {tuple(labels.shape)}, got {tuple(predictions.shape)}"
        )
