"""Nearest neighbours: oracle votes, scikit-learn, chunks, and what users get wrong."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from singer_hf.evaluation.heads import knn
from singer_hf.evaluation.heads.knn import knn_accuracy, knn_predict


@pytest.fixture
def sets():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (340,), generator=rng)
    features = torch.randn(5, 16, generator=rng)[labels] + torch.randn(340, 16, generator=rng)
    return features[:300], labels[:300], features[300:], labels[300:]


def test_votes_are_weighted_by_similarity_over_temperature():
    bank, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]), torch.tensor([0, 1, 1])
    scores = knn_predict(bank, labels, torch.tensor([[3.0, 3.0]]), k=3, temperature=0.5)
    similarity = torch.tensor([0.5**0.5, 0.5**0.5, -(0.5**0.5)])
    weights = (similarity / 0.5).softmax(0)
    assert torch.allclose(scores, torch.stack([weights[0], weights[1] + weights[2]])[None])


def test_predictions_equal_scikit_learn(sets):
    train, labels, test, _ = sets
    reference = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
    )
    reference.fit(train.numpy(), labels.numpy())
    expected = torch.from_numpy(reference.predict_proba(test.numpy())).float()
    assert torch.allclose(knn_predict(train, labels, test), expected, atol=1e-5)


def test_the_size_of_chunks_does_not_matter(sets, monkeypatch):
    train, labels, test, _ = sets
    whole = knn_predict(train, labels, test)
    monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 700)  # two images at a time
    assert torch.allclose(knn_predict(train, labels, test), whole, atol=1e-6)


def test_accuracy_is_high_on_separable_and_at_chance_on_shuffled_labels(sets):
    train, labels, test, test_labels = sets
    assert knn_accuracy(train, labels, test, test_labels) > 0.9
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    assert knn_accuracy(train, shuffled, test, test_labels) < 0.5


def test_the_scale_of_features_does_not_matter(sets):
    train, labels, test, _ = sets
    assert torch.allclose(knn_predict(train * 50, labels, test * 0.1), knn_predict(train, labels, test), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 301}, "`k` must be within 1 and the 300 training images, got 301"),
        ({"temperature": 0.0}, "`temperature` must be above 0, got 0.0"),
        ({"num_classes": 3}, "`train_labels` must be within 0 and 2, got "),
        ({"features": torch.zeros(2, 8)}, r"of shapes \(N, D\) and \(M, D\), got \(300, 16\) and \(2, 8\)"),
        ({"features": torch.full((2, 16), float("nan"))}, "`features` must be finite, got NaN or infinity"),
    ],
)
def test_bad_input_is_named(sets, change, message):
    arguments = {"train_features": sets[0], "train_labels": sets[1], "features": sets[2], **change}
    with pytest.raises(ValueError, match=message):
        knn_predict(**arguments)


def test_one_class_and_unknown_test_classes_are_refused(sets):
    train, labels, test, test_labels = sets
    with pytest.raises(ValueError, match=r"`train_labels` must hold at least 2 classes, got only \[0\]"):
        knn_accuracy(train, torch.zeros_like(labels), test, test_labels)
    with pytest.raises(
        ValueError, match=r"`test_labels` must be classes of the training set, got \[9\] which it lacks"
    ):
        knn_accuracy(train, labels, test, torch.full_like(test_labels, 9))
