"""Logistic regression (L-BFGS) on frozen features: a linear probe for sets that fit in memory."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from singer_hf.evaluation.label_checks import check_same_classes

# Inverse strengths of the L2 penalty for features of unit variance, from strong to weak.
REGULARISATIONS = (1e-3, 1e-2, 1e-1, 1.0)
_MAX_ITERATIONS = 200


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    regularisations: tuple[float, ...] = REGULARISATIONS,
    validation_share: float = 0.2,
    seed: int = 0,
) -> float:
    """Top-1 accuracy in [0, 1] on the test set of a logistic regression fitted on the training set.

    The result is deterministic. :func:`fit_logistic` chooses the penalty without the test set.

    Args:
        train_features: Features (N, D).
        train_labels: Class indices (N,).
        test_features: Features (M, D).
        test_labels: Class indices (M,).
        regularisations: Candidates for scikit-learn's ``C``.
        validation_share: Share of the training set on which the penalty is chosen, in (0, 1).
        seed: Seed of that split.

    Raises:
        ValueError: If a shape or ``validation_share`` is wrong, a feature is not finite, the training set has one
            class only, or the test set has a class that the training set lacks.
    """
    check_same_classes(train_labels, test_labels)
    _check_features(test_features, test_labels, "test")
    probe = fit_logistic(
        train_features,
        train_labels,
        regularisations=regularisations,
        validation_share=validation_share,
        seed=seed,
    )
    return float(probe.score(_array(test_features), test_labels.cpu().numpy()))


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    regularisations: tuple[float, ...] = REGULARISATIONS,
    validation_share: float = 0.2,
    seed: int = 0,
) -> Pipeline:
    """Fits a standardised logistic regression on all rows, with the penalty that is best on a held-out part.

    Args:
        features: Features (N, D).
        labels: Class indices (N,).
        regularisations: Candidates for scikit-learn's ``C``, the inverse strength of the penalty. The strongest of
            equally good ones is chosen.
        validation_share: Share of ``features`` held out, in (0, 1); see :func:`split_validation`.
        seed: Seed of the split.

    Raises:
        ValueError: If a shape or ``validation_share`` is wrong, or a feature is not finite.
    """
    _check_features(features, labels, "train")
    held_out = np.full(len(labels), -1)  # PredefinedSplit never holds out the rows with -1
    held_out[split_validation(labels, validation_share, seed)[1].numpy()] = 0
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS))
    # GridSearchCV chooses the first of equally good candidates. LogisticRegressionCV would scale by all rows.
    penalties = {"logisticregression__C": sorted(regularisations)}
    search = GridSearchCV(probe, penalties, cv=PredefinedSplit(held_out), error_score="raise")
    with warnings.catch_warnings():
        # With a weak penalty, separable features have no finite optimum; the held-out part judges where the fit ends.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return search.fit(_array(features), labels.cpu().numpy()).best_estimator_


def split_validation(labels: Tensor, share: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Splits N rows into a part to fit on and a held-out part to choose on.

    Args:
        labels: Class indices (N,), by which the parts are stratified if each class has at least 2 rows and the
            smaller part has room for all classes; labels of any other shape (N, ...) are split at random.
        share: Share of the held-out rows, in (0, 1).
        seed: Seed of the split.

    Returns:
        Sorted row indices of both parts.

    Raises:
        ValueError: If ``share`` leaves one of the parts empty.
    """
    num_rows = len(labels)
    held_out = round(num_rows * share)
    if not 0 < held_out < num_rows:
        raise ValueError(f"`share` must leave both parts at least one of the {num_rows} rows, got {share!r}")
    strata = labels.cpu().numpy() if _can_stratify(labels, min(held_out, num_rows - held_out)) else None
    parts = train_test_split(torch.arange(num_rows).numpy(), test_size=held_out, random_state=seed, stratify=strata)
    return tuple(torch.from_numpy(part).sort().values for part in parts)


def _can_stratify(labels: Tensor, smaller_part: int) -> bool:
    if labels.ndim != 1 or labels.is_floating_point():
        return False
    counts = torch.unique(labels, return_counts=True)[1]
    return int(counts.min()) >= 2 and len(counts) <= smaller_part


def _array(features: Tensor) -> np.ndarray:
    return features.detach().float().cpu().numpy()


def _check_features(features: Tensor, labels: Tensor, part: str) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"`{part}_features` and `{part}_labels` must be of shapes (N, D) and (N,), got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if not torch.isfinite(features).all():
        raise ValueError(
            f"`{part}_features` must be finite, got NaN or infinity; check the model's weights and precision"
        )
