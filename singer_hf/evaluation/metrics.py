"""Metrics in two steps: counts that add up over batches, workers and processes, and one division at the end.

``count_*`` functions turn a batch into a dict of sums; :func:`add_counts` adds two; the other functions divide.
A figure of a whole set is therefore never a mean of batch means.
"""

import torch
from torch import Tensor

Counts = dict[str, Tensor]

# Whether more is better, by metric name; `top1_head` and the like follow the name in front of the underscore.
GREATER_IS_BETTER = {
    "top1": True,
    "top5": True,
    "mean_class_accuracy": True,
    "knn_top1": True,
    "mean_iou": True,
    "pixel_accuracy": True,
    "rmse": False,
    "log10": False,
    "abs_rel": False,
    "sq_rel": False,
    "delta1": True,
    "delta2": True,
    "delta3": True,
    "ece": False,
}
_DELTA = 1.25


def greater_is_better(name: str) -> bool:
    """Direction of the metric ``name``: True if more is better.

    Raises:
        ValueError: If no such metric exists.
    """
    for known in (name, name.rpartition("_")[0]):
        if known in GREATER_IS_BETTER:
            return GREATER_IS_BETTER[known]
    raise ValueError(f"`name` must be one of {sorted(GREATER_IS_BETTER)}, got {name!r}")


def add_counts(first: Counts, second: Counts) -> Counts:
    """Sums of two parts of a set, key by key; an empty dict stands for nothing counted yet."""
    if not first or not second:
        return dict(first or second)
    return {key: first[key] + second[key] for key in first}


def count_confusion(predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Confusion matrix (C, C) in int64: rows are the truth, columns the prediction.

    Equals ``sklearn.metrics.confusion_matrix``, which is six times slower on pixels and not on the device.

    Args:
        predictions: Class indices of any shape.
        labels: Class indices of the same shape.
        num_classes: Number C of classes.
        ignore_index: Label of pixels that do not count, if there is one.

    Raises:
        ValueError: If the shapes differ or a label or prediction is out of range.
    """
    _check_same_shape(predictions, labels)
    predictions, labels = predictions.flatten().long(), labels.flatten().long()
    if ignore_index is not None:
        kept = labels != ignore_index
        predictions, labels = predictions[kept], labels[kept]
    check_classes(labels, num_classes, "labels", ignore_index)
    check_classes(predictions, num_classes, "predictions")
    cells = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def count_classification(logits: Tensor, labels: Tensor, num_calibration_bins: int = 15) -> Counts:
    """Counts of one batch of classified images: confusion, top-5 hits and the calibration histogram.

    Args:
        logits: Class scores (B, C).
        labels: Class indices (B,).
        num_calibration_bins: Equal bins of confidence between 0 and 1.

    Raises:
        ValueError: If a label is out of range.
    """
    num_classes = logits.shape[1]
    check_classes(labels, num_classes, "labels")
    top = logits.topk(min(5, num_classes), dim=1).indices
    return {
        "confusion": count_confusion(top[:, 0], labels, num_classes),
        "top5_hits": (top == labels[:, None]).sum(),
        "calibration": count_calibration(logits.float().softmax(dim=1), labels, num_calibration_bins),
    }


def divide_classification(counts: Counts) -> dict[str, float]:
    """``top1``, ``top5``, ``mean_class_accuracy`` and ``ece`` in [0, 1] from :func:`count_classification`."""
    confusion = counts["confusion"]
    return {
        "top1": pixel_accuracy(confusion),
        "top5": _ratio(counts["top5_hits"], confusion.sum()),
        "mean_class_accuracy": _mean_of_known(per_class_accuracy(confusion)),
        "ece": calibration_error(counts["calibration"]),
    }


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Share of each class's samples that are right, (C,) in [0, 1]; NaN for classes without samples."""
    return confusion.diagonal().double() / confusion.sum(dim=1)


def accuracy_by_frequency(
    confusion: Tensor, train_counts: Tensor, head: int = 100, tail: int = 20
) -> dict[str, float]:
    """Top-1 over the samples of frequent, medium and rare classes: ``top1_head``, ``top1_medium``, ``top1_tail``.

    The borders are the many / medium / few-shot split of Liu et al., CVPR 2019 (arXiv:1904.05160): more than 100,
    20 to 100 and fewer than 20 training images. Groups without samples are left out.

    Args:
        confusion: Confusion matrix (C, C) of the test set.
        train_counts: Training images per class, (C,).
        head: Classes with more training images than this are frequent.
        tail: Classes with fewer training images than this are rare.

    Raises:
        ValueError: If ``train_counts`` does not hold one figure per class.
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
    """Mean over classes of intersection / union, in [0, 1], without classes absent from both prediction and truth."""
    return _mean_of_known(per_class_iou(confusion))


def per_class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, (C,); NaN where a class is in neither prediction nor truth."""
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)


def pixel_accuracy(confusion: Tensor) -> float:
    """Share of samples or pixels on the diagonal, in [0, 1].

    Raises:
        ValueError: If nothing was counted.
    """
    return _ratio(confusion.diagonal().sum(), confusion.sum())


def count_segmentation(logits: Tensor, labels: Tensor, ignore_index: int | None = 255) -> Counts:
    """Pixel confusion of a batch.

    Args:
        logits: Class scores (B, C, H, W) at the size of the masks.
        labels: Masks of class indices (B, H, W).
        ignore_index: Label of pixels that do not count.
    """
    return {"confusion": count_confusion(logits.argmax(dim=1), labels, logits.shape[1], ignore_index)}


def divide_segmentation(counts: Counts) -> dict[str, float]:
    """``mean_iou`` and ``pixel_accuracy`` in [0, 1] from :func:`count_segmentation`."""
    return {"mean_iou": mean_iou(counts["confusion"]), "pixel_accuracy": pixel_accuracy(counts["confusion"])}


def valid_depth(depth: Tensor, max_depth: float) -> Tensor:
    """Pixels with a usable measured depth, boolean: finite, above 0 and at most ``max_depth`` metres."""
    return torch.isfinite(depth) & (depth > 0) & (depth <= max_depth)


def count_depth(predictions: Tensor, depth: Tensor, max_depth: float = 10.0, min_depth: float = 1e-3) -> Counts:
    """Sums of depth errors over the valid pixels of a batch (Eigen et al., NeurIPS 2014, arXiv:1406.2283).

    Args:
        predictions: Predicted depth in metres, any shape; clamped to [``min_depth``, ``max_depth``].
        depth: Measured depth in metres, same shape; 0, NaN and infinity mark missing measurements.
        max_depth: Largest depth in metres that counts.
        min_depth: Smallest depth in metres a prediction can have, so that logarithms and ratios stay finite.

    Raises:
        ValueError: If the shapes differ or a prediction is not finite.
    """
    _check_same_shape(predictions, depth)
    valid = valid_depth(depth, max_depth)
    predicted, true = predictions[valid].double().clamp(min_depth, max_depth), depth[valid].double()
    if not torch.isfinite(predicted).all():
        raise ValueError("`predictions` must be finite, got NaN; the probe diverged, so lower its learning rate")
    error, ratio = predicted - true, torch.maximum(predicted / true, true / predicted)
    sums = {
        "squared": error.square(),
        "log10": (predicted.log10() - true.log10()).abs(),
        "abs_rel": error.abs() / true,
        "sq_rel": error.square() / true,
        **{f"delta{power}": (ratio < _DELTA**power).double() for power in (1, 2, 3)},
    }
    return {"pixels": valid.sum().double(), **{name: values.sum() for name, values in sums.items()}}


def divide_depth(counts: Counts) -> dict[str, float]:
    """``rmse`` (metres), ``log10``, ``abs_rel``, ``sq_rel`` (metres) and ``delta1`` to ``delta3`` over valid pixels.

    Raises:
        ValueError: If no pixel was valid.
    """
    if counts["pixels"] == 0:
        raise ValueError("`depth` must have valid pixels, got 0, NaN or values above `max_depth` everywhere")
    means = {name: _ratio(total, counts["pixels"]) for name, total in counts.items() if name != "pixels"}
    return {"rmse": means.pop("squared") ** 0.5, **means}


def count_calibration(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> Tensor:
    """Calibration histogram (bins, 3): samples, sum of confidences and hits per bin of confidence.

    Args:
        probabilities: Class probabilities (B, C).
        labels: Class indices (B,).
        num_bins: Equal bins over (0, 1]; a border belongs to the bin below it.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    index = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).double()], dim=1)
    return torch.zeros(num_bins, 3, dtype=torch.double, device=rows.device).index_add_(0, index, rows)


def calibration_error(calibration: Tensor) -> float:
    """Expected calibration error in [0, 1]: the bins' |accuracy - confidence|, weighted by their samples.

    Source: Guo et al., ICML 2017, arXiv:1706.04599, equation 3.
    """
    samples, confidence, hits = calibration.unbind(dim=1)
    return _ratio((hits - confidence).abs().sum(), samples.sum())


def check_classes(labels: Tensor, num_classes: int, name: str, ignore_index: int | None = None) -> None:
    """Raises a ValueError if class indices ``labels`` are not within 0 and ``num_classes`` - 1."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        hint = "" if ignore_index is None else f" or the ignored {ignore_index}"
        raise ValueError(f"`{name}` must be within 0 and {num_classes - 1}{hint}, got {int(wrong[0])}")


def check_two_classes(counts: Tensor, name: str) -> None:
    """Raises a ValueError if fewer than two classes occur in the counts per class (C,) of the labels ``name``."""
    present = counts.nonzero().flatten().tolist()
    if len(present) < 2:
        raise ValueError(f"`{name}` must hold at least 2 classes, got only {present}; there is nothing to tell apart")


def _check_same_shape(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape:
        raise ValueError(
            f"`predictions` must be of the shape of the labels {tuple(labels.shape)}, got {tuple(predictions.shape)}"
        )


def _ratio(part: Tensor, total: Tensor) -> float:
    if total == 0:
        raise ValueError("the set must hold at least one sample that counts, got none: it is empty or all ignored")
    return float(part.double() / total)


def _mean_of_known(values: Tensor) -> float:
    known = values[~values.isnan()]
    return _ratio(known.sum(), torch.tensor(len(known)))
