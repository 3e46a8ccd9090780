"""Checks of class indices, with messages that name the argument."""

import torch
from torch import Tensor


def check_classes(labels: Tensor, num_classes: int, name: str, ignore_index: int | None = None) -> None:
    """Checks that class indices are within 0 and ``num_classes`` - 1.

    Args:
        labels: Class indices of any shape (...).
        num_classes: Number of classes.
        name: Name of the argument in the error message.
        ignore_index: Label that was left out before, for the error message.

    Raises:
        ValueError: If an index is out of range.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        hint = "" if ignore_index is None else f" or the ignored {ignore_index}"
        raise ValueError(f"`{name}` must be within 0 and {num_classes - 1}{hint}, got {int(wrong[0])}")


def check_two_classes(counts: Tensor, name: str) -> None:
    """Checks that at least two classes occur.

    Args:
        counts: Number of labels of each class, (C,).
        name: Name of the labels in the error message.

    Raises:
        ValueError: If fewer than two classes occur.
    """
    present = counts.nonzero().flatten().tolist()
    if len(present) < 2:
        raise ValueError(f"`{name}` must hold at least 2 classes, got only {present}; there is nothing to tell apart")


def check_same_classes(train_labels: Tensor, test_labels: Tensor) -> None:
    """Checks that a test set can be classified by a training set.

    Args:
        train_labels: Class indices (N,) of the training set.
        test_labels: Class indices (M,) of the test set.

    Raises:
        ValueError: If the training set has one class only, or the test set a class that the training set lacks.
    """
    check_classes(train_labels, max(1, int(train_labels.max()) + 1), "train_labels")
    check_two_classes(torch.bincount(train_labels.cpu().long()), "train_labels")
    unknown = sorted(set(test_labels.tolist()) - set(train_labels.tolist()))
    if unknown:
        raise ValueError(
            f"`test_labels` must be classes of the training set, got {unknown[:5]} which it lacks; "
            "check that both splits number their classes alike"
        )
