"""Logistic regression (L-BFGS) on frozen features: the linear probe for small sets."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from singer_hf.evaluation.heads.knn import check_same_classes

# Inverse strengths of the L2 penalty, on features of unit variance, from strong to weak.
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

    Deterministic. The penalty is chosen by :func:`fit_logistic` without looking at the test set.

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
    """Standardised logistic regression, its penalty chosen on a held-out part, then fitted on all of ``features``.

    Args:
        features: Features (N, D).
        labels: Class indices (N,).
        regularisations: Candidates for scikit-learn's ``C``, the inverse strength of the penalty. The strongest of
            equally good ones wins.
        validation_share: Share of ``features`` held out, in (0, 1); see :func:`split_validation`.
        seed: Seed of the split.

    Raises:
        ValueError: If a shape or ``validation_share`` is wrong, or a feature is not finite.
    """
    _check_features(features, labels, "train")
    x, y = _array(features), labels.cpu().numpy()
    fitting, validation = split_validation(labels, validation_share, seed)
    fitting, validation = fitting.numpy(), validation.numpy()
    scores = {c: _fit(x[fitting], y[fitting], c).score(x[validation], y[validation]) for c in sorted(regularisations)}
    return _fit(x, y, max(scores, key=scores.get))


def split_validation(labels: Tensor, share: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sorted indices of the rows to fit on and of the rows to choose on, disjoint and together all N.

    Args:
        labels: Class indices (N,), by which the parts are stratified where each class has at least 2 rows and the
            smaller part has room for all classes; anything else of length N (masks, depth maps) is split at random.
        share: Share of the rows to choose on, in (0, 1).
        seed: Seed of the split.

    Raises:
        ValueError: If ``share`` leaves one of the parts empty.
    """
    num_rows = len(labels)
    held_out = round(num_rows * share)
    if not 0 < held_out < num_rows:
        raise ValueError(f"`share` must leave rows to fit and to choose on of {num_rows}, got {share!r}")
    strata = labels.cpu().numpy() if _can_stratify(labels, min(held_out, num_rows - held_out)) else None
    parts = train_test_split(torch.arange(num_rows).numpy(), test_size=held_out, random_state=seed, stratify=strata)
    return tuple(torch.from_numpy(part).sort().values for part in parts)


def _can_stratify(labels: Tensor, smaller_part: int) -> bool:
    if labels.ndim != 1 or labels.is_floating_point():
        return False
    counts = torch.unique(labels, return_counts=True)[1]
    return int(counts.min()) >= 2 and len(counts) <= smaller_part


def _fit(x: np.ndarray, y: np.ndarray, inverse_strength: float) -> Pipeline:
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_strength, max_iter=_MAX_ITERATIONS))
    with warnings.catch_warnings():
        # A weak penalty on separable features has no finite optimum; the validation part judges where it stopped.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(x, y)


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
