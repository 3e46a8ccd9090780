"""Outliers by a threshold on their norms, and the settings of the methods that have one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.refiner_method import RefinerMethod

SCOPES = ("image", "batch")


@dataclass(frozen=True)
class NormThresholdMethod(RefinerMethod):
    """Refines patch tokens whose norm exceeds a threshold.

    Args:
        quantile: In (0, 1): an outlier is longer than this quantile of the patch norms.
        mad_factor: k of an :class:`OutlierRule`, > 0. With neither of the two: ``OutlierRule()``.
        scope: Patches over which the threshold is taken: those of each ``"image"`` or of the whole ``"batch"``.

    Raises:
        ValueError: If both thresholds are given, one is out of range, or the scope is unknown.
    """

    quantile: float | None = None
    mad_factor: float | None = None
    scope: str = "image"

    def __post_init__(self) -> None:
        check_threshold("mad_factor", self.quantile, self.mad_factor, self.scope)
        if self.mad_factor is not None:
            OutlierRule(mad_factor=self.mad_factor)

    @property
    def rule(self) -> OutlierRule | None:
        """The outlier rule, where ``mad_factor`` is given."""
        return None if self.mad_factor is None else OutlierRule(mad_factor=self.mad_factor)


@dataclass(frozen=True)
class SigmaRule:
    """The rule of several papers: an outlier's norm exceeds the mean norm by a number of standard deviations.

    Outliers raise mean and deviation themselves: where a share p of the tokens has one large norm and the others a
    small one, they are ``sqrt((1 - p) / p)`` deviations above the mean. So 3 deviations miss all outliers from a share
    of a tenth on and 4 deviations from 6 % on.

    Args:
        sigma: Number of standard deviations, > 0.

    Raises:
        ValueError: If ``sigma`` is out of range.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"`sigma` must be greater than 0, got {self.sigma!r}")

    def thresholds(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the thresholds and the means, both (..., 1), of norms (..., N) along the last dimension."""
        deviation, mean = torch.std_mean(norms, dim=-1, correction=0, keepdim=True)
        return mean + self.sigma * deviation, mean

    def mask(self, norms: Tensor) -> Tensor:
        """Returns a bool mask (..., N) of the outliers among the N tokens with norms (..., N)."""
        return norms > self.thresholds(norms)[0]


def check_threshold(other: str, quantile: float | None, value: object, scope: str) -> None:
    """Checks the threshold of a refiner.

    Args:
        other: Name of the alternative to ``quantile``.
        quantile: Quantile of the norms, in (0, 1).
        value: The alternative.
        scope: One of ``SCOPES``.

    Raises:
        ValueError: If both are given, the quantile is out of range, or the scope is unknown.
    """
    if quantile is not None and value is not None:
        raise ValueError(f"`quantile` and `{other}` must not both be given, got {quantile!r} and {value!r}; drop one")
    if quantile is not None and not 0 < quantile < 1:
        raise ValueError(f"`quantile` must lie in (0, 1), got {quantile!r}; `{other}` needs no share of outliers")
    check_scope(scope)


def check_scope(scope: str) -> None:
    """Checks the scope of a threshold.

    Raises:
        ValueError: If it is not one of ``SCOPES``.
    """
    if scope not in SCOPES:
        raise ValueError(f"`scope` must be one of {', '.join(map(repr, SCOPES))}, got {scope!r}")


def norms_and_thresholds(
    patches: Tensor, quantile: float | None, rule: OutlierRule | SigmaRule | None, scope: str
) -> tuple[Tensor, Tensor]:
    """Norms (B, N) of patch tokens and the threshold of each image (B, 1) or of the batch (1, 1), float32.

    Args:
        patches: Patch tokens (B, N, D).
        quantile: Quantile of the norms that is the threshold, or None.
        rule: The rule otherwise; None: ``OutlierRule()``.
        scope: One of ``SCOPES``.
    """
    norms = patches.float().norm(dim=-1)
    pooled = norms if scope == "image" else norms.flatten().unsqueeze(0)
    if quantile is not None:
        return norms, torch.quantile(pooled, quantile, dim=-1, keepdim=True)
    return norms, (rule or OutlierRule()).thresholds(pooled)[0]
