"""Tasks of the trained heads: their loss, their metrics and the check of their labels."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.evaluation.counting_metric import CountingMetric
from singer_hf.evaluation.counts import valid_depth
from singer_hf.evaluation.label_checks import check_classes, check_two_classes
from singer_hf.evaluation.metrics import ClassificationMetric, DepthMetric, SegmentationMetric

_NO_BIN = -100


class Task(Protocol):
    """Task of the fit loop."""

    def new_metric(self) -> CountingMetric:
        """Returns an empty metric; heads are chosen by its main metric."""

    def predict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes predictions for the metric from logits (B, C) or (B, C, h, w), at the size of the labels."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss, a scalar, over the labels that count; 0 if none counts."""

    def count_labels(self, labels: Tensor) -> Tensor:
        """Number of labels (B, ...) of each kind, (kinds,), for :meth:`check_labels`.

        Raises:
            ValueError: If a label is out of range.
        """

    def check_labels(self, counts: Tensor) -> None:
        """Checks the label counts (kinds,) of a training set.

        Raises:
            ValueError: If nothing can be learned from labels with these counts.
        """


@dataclass(frozen=True)
class ClassificationTask:
    """One class per image; labels (B,), logits (B, C)."""

    num_classes: int

    def new_metric(self) -> ClassificationMetric:
        """Returns an empty metric."""
        return ClassificationMetric()

    def predict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits (B, C): the metric ranks them."""
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, a scalar, of logits (B, C) and labels (B,)."""
        return F.cross_entropy(logits, labels.long())

    def count_labels(self, labels: Tensor) -> Tensor:
        """Images per class, (C,)."""
        check_classes(labels, self.num_classes, "labels")
        return torch.bincount(labels.long(), minlength=self.num_classes)

    def check_labels(self, counts: Tensor) -> None:
        """Requires at least two classes among the images per class (C,)."""
        check_two_classes(counts, "labels")


@dataclass(frozen=True)
class SegmentationTask:
    """One class per pixel; labels (B, H, W), logits (B, C, h, w), which are upsampled bilinearly to the labels."""

    num_classes: int
    ignore_index: int = 255

    def new_metric(self) -> SegmentationMetric:
        """Returns an empty metric."""
        return SegmentationMetric(self.num_classes, self.ignore_index)

    def predict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Predicted masks (B, H, W) at the size of the labels (B, H, W)."""
        return upsample(logits, labels).argmax(dim=1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, a scalar: the mean over the pixels (B, H, W) that are not ignored."""
        labels = labels.long()
        return _pixel_loss(upsample(logits, labels), labels, self.ignore_index)

    def count_labels(self, labels: Tensor) -> Tensor:
        """Pixels per class, (C,)."""
        kept = labels[labels != self.ignore_index].long()
        check_classes(kept, self.num_classes, "labels", self.ignore_index)
        return torch.bincount(kept, minlength=self.num_classes)

    def check_labels(self, counts: Tensor) -> None:
        """Requires at least two classes among the pixels per class (C,).

        Raises:
            ValueError: If all pixels are ignored or of one class.
        """
        if counts.sum() == 0:
            raise ValueError(f"`labels` must hold pixels that count, got only the ignored index {self.ignore_index}")
        check_two_classes(counts, "labels")


@dataclass(frozen=True)
class DepthTask:
    """Depth per pixel as a classification into equal bins; labels (B, H, W) in metres, logits (B, bins, h, w).

    Attributes:
        max_depth: Depth of the last bin in metres; the first is at 0.
        temperature: The prediction is the mean of the bins' depths under softmax(logits / temperature).
    """

    max_depth: float = 10.0
    temperature: float = 1.0

    def new_metric(self) -> DepthMetric:
        """Returns an empty metric."""
        return DepthMetric(self.max_depth)

    def predict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Predicted depth (B, H, W) in metres at the size of the labels (B, H, W)."""
        logits = upsample(logits, labels)
        depths = torch.linspace(0.0, self.max_depth, logits.shape[1], device=logits.device)
        return torch.einsum("bkhw,k->bhw", (logits.float() / self.temperature).softmax(dim=1), depths)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy to the nearest bin, a scalar: the mean over the valid pixels (B, H, W)."""
        valid = valid_depth(labels, self.max_depth)
        bins = (labels.nan_to_num(0.0, 0.0, 0.0) / self.max_depth * (logits.shape[1] - 1)).round().long()
        return _pixel_loss(upsample(logits, labels), torch.where(valid, bins, _NO_BIN), _NO_BIN)

    def count_labels(self, labels: Tensor) -> Tensor:
        """Number of valid pixels, (1,)."""
        return valid_depth(labels, self.max_depth).sum()[None]

    def check_labels(self, counts: Tensor) -> None:
        """Requires at least one valid pixel in the counts (1,).

        Raises:
            ValueError: If there is none.
        """
        if counts.sum() == 0:
            raise ValueError(
                f"`labels` must hold depths above 0 and up to {self.max_depth} metres, got 0, NaN or larger values "
                "everywhere; check the depth column's unit"
            )


def upsample(logits: Tensor, labels: Tensor) -> Tensor:
    """Upsamples logits (B, C, h, w) bilinearly to (B, C, H, W), the size of labels (B, H, W).

    Raises:
        ValueError: If ``labels`` is no batch of masks.
    """
    if labels.ndim != 3:
        raise ValueError(f"`labels` must be of shape (B, H, W), got {tuple(labels.shape)}")
    if logits.shape[-2:] == labels.shape[-2:]:
        return logits
    # Channels last halves the time of a step with 256 bins on a CPU, here and in the loss.
    logits = logits.contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size=tuple(labels.shape[-2:]), mode="bilinear", align_corners=False)


def _pixel_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
    total = F.cross_entropy(rows, labels.flatten(), ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)
