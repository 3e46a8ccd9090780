"""Logistic regression: separable and shuffled features, the choice of the penalty, bad input."""

import pytest
import torch

from singer_hf.evaluation.heads.logistic_regression import linear_probe


def probe_sets(seed=0, rows=400):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (rows,), generator=rng)
    features = torch.randn(4, 12, generator=rng)[labels] * 1.5 + torch.randn(rows, 12, generator=rng)
    return features[:300], labels[:300], features[300:], labels[300:]


def test_the_linear_probe_learns_separable_features_and_not_shuffled_ones():
    train, labels, test, test_labels = probe_sets()
    accuracy = linear_probe(train, labels, test, test_labels)
    assert accuracy > 0.9
    assert linear_probe(train, labels, test, test_labels) == accuracy
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert linear_probe(train, shuffled, test, test_labels) < 0.5


def test_the_penalty_is_chosen_without_the_test_set():
    """Predictions do not depend on the test labels, so the accuracies for all 0 and all 1 add up to 1."""
    train, labels, test, _ = probe_sets()
    labels = (labels > 1).long()
    zeros, ones = torch.zeros(100).long(), torch.ones(100).long()
    assert linear_probe(train, labels, test, zeros) + linear_probe(train, labels, test, ones) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: torch.zeros(300).long()}, r"`train_labels` must hold at least 2 classes, got only \[0\]"),
        ({3: torch.full((100,), 8)}, r"`test_labels` must be classes of the training set, got \[8\]"),
        ({0: torch.full((300, 12), float("nan"))}, "`train_features` must be finite, got NaN or infinity"),
        ({2: torch.zeros(7, 12)}, r"of shapes \(N, D\) and \(N,\), got \(7, 12\) and \(100,\)"),
    ],
)
def test_the_linear_probe_names_bad_input(change, message):
    arguments = [change.get(i, value) for i, value in enumerate(probe_sets())]
    with pytest.raises(ValueError, match=message):
        linear_probe(*arguments)
