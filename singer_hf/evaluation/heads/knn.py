"""Weighted nearest-neighbour classification on frozen features, in chunks of bounded memory."""

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.evaluation.label_checks import check_classes, check_same_classes
from singer_hf.evaluation.metrics import KnnMetric

# Number of similarities in memory at a time: 64 Mi of float32 take 256 MiB, whatever the size of the sets.
_MAX_SIMILARITIES = 64 * 2**20


@torch.no_grad()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> Tensor:
    """Class scores (M, C) by the votes of the ``k`` most similar training images.

    Votes are weighted by exp(cosine / ``temperature``); each row sums to 1. Source: Wu et al., CVPR 2018
    (arXiv:1805.01978), with the k and temperature of DINO and DINOv2.

    Args:
        train_features: Features (N, D); scaled to unit length here.
        train_labels: Class indices (N,).
        features: Features (M, D) to classify, on the same device.
        k: Number of neighbours; at most N.
        temperature: Temperature of the votes, above 0.
        num_classes: Number C of classes; None takes the largest training label plus 1.

    Raises:
        ValueError: If a shape, ``k``, ``temperature`` or a label is out of range, or a feature is not finite.
    """
    num_classes = int(train_labels.max()) + 1 if num_classes is None else num_classes
    _check(train_features, train_labels, features, k, temperature)
    check_classes(train_labels, num_classes, "train_labels")
    bank, train_labels = _unit(train_features, "train_features"), train_labels.long()
    scores = []
    for chunk in _unit(features, "features").split(max(1, _MAX_SIMILARITIES // len(bank))):
        similarity, neighbours = (chunk @ bank.T).topk(k, dim=1)
        weights = (similarity / temperature).softmax(dim=1)
        votes = torch.zeros(len(chunk), num_classes, device=weights.device)
        scores.append(votes.scatter_add_(1, train_labels[neighbours], weights))
    return torch.cat(scores)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy in [0, 1] of :func:`knn_predict` on a labelled test set; see :class:`KnnMetric`.

    Args:
        train_features: Features (N, D).
        train_labels: Class indices (N,).
        test_features: Features (M, D).
        test_labels: Class indices (M,).
        k: Number of neighbours.
        temperature: Temperature of the votes.

    Raises:
        ValueError: As :func:`knn_predict`, or if a test label does not occur in the training set.
    """
    check_same_classes(train_labels, test_labels)
    scores = knn_predict(train_features, train_labels, test_features, k=k, temperature=temperature)
    counted = {"predictions": scores.argmax(dim=1), "references": test_labels.to(scores.device)}
    return KnnMetric().compute(**counted)["knn_top1"]


def _unit(features: Tensor, name: str) -> Tensor:
    features = F.normalize(features.float(), dim=1)
    if not torch.isfinite(features).all():
        raise ValueError(f"`{name}` must be finite, got NaN or infinity; check the model's weights and precision")
    return features


def _check(train_features: Tensor, train_labels: Tensor, features: Tensor, k: int, temperature: float) -> None:
    if train_features.ndim != 2 or features.ndim != 2 or train_features.shape[1] != features.shape[1]:
        raise ValueError(
            "`train_features` and `features` must be of shapes (N, D) and (M, D), got "
            f"{tuple(train_features.shape)} and {tuple(features.shape)}"
        )
    if train_labels.shape != train_features.shape[:1]:
        raise ValueError(f"`train_labels` must be of shape {(len(train_features),)}, got {tuple(train_labels.shape)}")
    if not 1 <= k <= len(train_features):
        raise ValueError(f"`k` must be within 1 and the {len(train_features)} training images, got {k!r}")
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature!r}")
