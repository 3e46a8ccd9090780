"""What the three tasks of a probe mean: their loss, their counts and the figure by which a head is chosen."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.evaluation.metrics import (
    Counts,
    check_classes,
    check_two_classes,
    count_classification,
    count_depth,
    count_segmentation,
    divide_classification,
    divide_depth,
    divide_segmentation,
    valid_depth,
)

_NO_BIN = -100


class Task(Protocol):
    """A task of the fit loop."""

    metric: str

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the labels that count; 0 if none does."""

    def count(self, logits: Tensor, labels: Tensor) -> Counts:
        """Sums that :meth:`divide` turns into metrics."""

    def divide(self, counts: Counts) -> dict[str, float]:
        """Metrics of all that was counted."""

    def count_labels(self, labels: Tensor) -> Tensor:
        """How often each kind of label occurs, for :meth:`check_labels`; a ValueError if one is out of range."""

    def check_labels(self, counts: Tensor) -> None:
        """Raises a ValueError if nothing can be learned from a training set with these label counts."""


@dataclass(frozen=True)
class ClassificationTask:
    """One class per image; labels (B,), logits (B, C)."""

    num_classes: int
    metric: str = "top1"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(logits, labels.long())

    def count(self, logits: Tensor, labels: Tensor) -> Counts:
        """See :func:`count_classification`."""
        return count_classification(logits, labels)

    def divide(self, counts: Counts) -> dict[str, float]:
        """See :func:`divide_classification`."""
        return divide_classification(counts)

    def count_labels(self, labels: Tensor) -> Tensor:
        """Images per class (C,)."""
        check_classes(labels, self.num_classes, "labels")
        return torch.bincount(labels.long(), minlength=self.num_classes)

    def check_labels(self, counts: Tensor) -> None:
        """Asks for at least two classes."""
        check_two_classes(counts, "labels")


@dataclass(frozen=True)
class SegmentationTask:
    """One class per pixel; labels (B, H, W), logits (B, C, h, w), which are upsampled bilinearly to the labels."""

    num_classes: int
    ignore_index: int = 255
    metric: str = "mean_iou"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, mean over the pixels that are not ignored."""
        labels = labels.long()
        return _pixel_loss(upsample(logits, labels), labels, self.ignore_index)

    def count(self, logits: Tensor, labels: Tensor) -> Counts:
        """See :func:`count_segmentation`."""
        return count_segmentation(upsample(logits, labels), labels, self.ignore_index)

    def divide(self, counts: Counts) -> dict[str, float]:
        """See :func:`divide_segmentation`."""
        return divide_segmentation(counts)

    def count_labels(self, labels: Tensor) -> Tensor:
        """Pixels per class (C,)."""
        kept = labels[labels != self.ignore_index].long()
        check_classes(kept, self.num_classes, "labels", self.ignore_index)
        return torch.bincount(kept, minlength=self.num_classes)

    def check_labels(self, counts: Tensor) -> None:
        """Asks for at least two classes among the pixels that are not ignored."""
        if counts.sum() == 0:
            raise ValueError(f"`labels` must hold pixels that count, got only the ignored index {self.ignore_index}")
        check_two_classes(counts, "labels")


@dataclass(frozen=True)
class DepthTask:
    """Depth in metres per pixel as a classification into equally spaced bins; logits (B, bins, h, w).

    Attributes:
        max_depth: Depth of the last bin in metres; the first is at 0.
        temperature: The prediction is the mean of the bins' depths under softmax(logits / temperature).
        metric: The figure by which a head is chosen.
    """

    max_depth: float = 10.0
    temperature: float = 1.0
    metric: str = "rmse"

    def predict(self, logits: Tensor) -> Tensor:
        """Logits (B, bins, H, W) -> depth (B, H, W) in metres."""
        depths = torch.linspace(0.0, self.max_depth, logits.shape[1], device=logits.device)
        return torch.einsum("bkhw,k->bhw", (logits.float() / self.temperature).softmax(dim=1), depths)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy to the nearest bin, mean over the valid pixels."""
        valid = valid_depth(labels, self.max_depth)
        bins = (labels.nan_to_num(0.0, 0.0, 0.0) / self.max_depth * (logits.shape[1] - 1)).round().long()
        return _pixel_loss(upsample(logits, labels), torch.where(valid, bins, _NO_BIN), _NO_BIN)

    def count(self, logits: Tensor, labels: Tensor) -> Counts:
        """See :func:`count_depth`."""
        return count_depth(self.predict(upsample(logits, labels)), labels, self.max_depth)

    def divide(self, counts: Counts) -> dict[str, float]:
        """See :func:`divide_depth`."""
        return divide_depth(counts)

    def count_labels(self, labels: Tensor) -> Tensor:
        """Number of valid pixels, (1,)."""
        return valid_depth(labels, self.max_depth).sum()[None]

    def check_labels(self, counts: Tensor) -> None:
        """Asks for at least one valid pixel."""
        if counts.sum() == 0:
            raise ValueError(
                f"`labels` must hold depths above 0 and up to {self.max_depth} metres, got 0, NaN or larger values "
                "everywhere; check the depth column's unit"
            )


def upsample(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, C, h, w) at the size of labels (B, H, W), bilinear.

    Raises:
        ValueError: If ``labels`` is no batch of masks.
    """
    if labels.ndim != 3:
        raise ValueError(f"`labels` must be of shape (B, H, W), got {tuple(labels.shape)}")
    if logits.shape[-2:] == labels.shape[-2:]:
        return logits
    # Channels last: half the time of a step with 256 bins on a CPU, here and in the loss.
    logits = logits.contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size=tuple(labels.shape[-2:]), mode="bilinear", align_corners=False)


def _pixel_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
    total = F.cross_entropy(rows, labels.flatten(), ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)
