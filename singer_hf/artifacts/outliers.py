"""High-norm outlier tokens: the outlier rule, and all statistics of patch norms."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

# Outliers are artifacts of a block from this share on: 1 patch in 2000, or 1 in every tenth image of 196 patches.
MIN_SHARE = 5e-4
# Smallest mean ratio of outlier norm to median norm in a block with artifacts. Uniform areas such as bright skies have
# tokens of twice the median in the first blocks, which are not artifacts.
MIN_STRENGTH = 3.0


@dataclass(frozen=True)
class OutlierRule:
    """The rule that decides which patch tokens of an image are high-norm outliers.

    A token is an outlier if its L2 norm exceeds ``median + mad_factor * max(MAD, mad_floor * median)``. Median and MAD
    are taken over the patch tokens of the same image in the same block; MAD is the plain median absolute deviation,
    not scaled to a standard deviation. The floor applies where all norms are almost equal (a MAD near 0): with the
    default values an outlier has at least twice the median norm of its image.

    Args:
        mad_factor: Number of MADs above the median, k > 0.
        mad_floor: Smallest MAD in units of the median, >= 0.
        absolute: A norm, > 0, above which tokens are counted in addition, or None. Not comparable between models.

    Raises:
        ValueError: If an argument is out of range.
    """

    mad_factor: float = 10.0
    mad_floor: float = 0.1
    absolute: float | None = None

    def __post_init__(self) -> None:
        if not self.mad_factor > 0:
            raise ValueError(f"`mad_factor` must be greater than 0, got {self.mad_factor!r}")
        if not self.mad_floor >= 0:
            raise ValueError(f"`mad_floor` must be at least 0, got {self.mad_floor!r}")
        if self.absolute is not None and not self.absolute > 0:
            raise ValueError(f"`absolute` must be greater than 0 or None, got {self.absolute!r}")

    def thresholds(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the thresholds and the medians, both (..., 1), of norms (..., N) along the last dimension."""
        median = row_median(norms)
        mad = row_median((norms - median).abs())
        return median + self.mad_factor * torch.maximum(mad, self.mad_floor * median), median

    def mask(self, norms: Tensor) -> Tensor:
        """Returns a bool mask (..., N) of the outliers among the N tokens with norms (..., N)."""
        return norms > self.thresholds(norms)[0]

    def to_dict(self) -> dict[str, float | None]:
        """Returns the rule as plain data."""
        return asdict(self)


def row_median(values: Tensor) -> Tensor:
    """Returns the median of (..., N) along the last dimension, (..., 1); for an even N the mean of the middle two."""
    ordered, count = values.sort(dim=-1).values, values.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]).unsqueeze(-1) / 2


def token_norms(tokens: Tensor) -> Tensor:
    """Returns the L2 norms (...) of tokens (..., D), float32."""
    return tokens.float().norm(dim=-1)


def outlier_ratio(norms: Tensor) -> Tensor:
    """Returns the 99th percentile over the median of an image's patch norms, as a mean over images.

    This is the p99/median of every table, log and figure. 1 means that all patches of an image are equally long.
    Quantiles are interpolated linearly.

    Args:
        norms: L2 norms of the patch tokens of one block, (B, N), float32; see :func:`token_norms`.

    Returns:
        A scalar tensor, at least 1, or 0 if all norms are 0.
    """
    quantiles = torch.quantile(norms, torch.tensor([0.5, 0.99], device=norms.device), dim=1)
    return (quantiles[1] / quantiles[0].clamp(min=1e-12)).mean()


def sigma_outliers(norms: Tensor, factor: float = 4.0) -> Tensor:
    """Returns the number of patches whose norm exceeds mean + ``factor`` standard deviations of their image's norms.

    This is the count in the public training logs that docs/natural_artifacts.md refers to, as a mean over images. Of N
    patches at most N / (1 + factor**2) can count, because outliers raise mean and deviation themselves: use
    :class:`OutlierRule` to decide which tokens are outliers.

    Args:
        norms: L2 norms of the patch tokens of one block, (B, N), float32.
        factor: Number of standard deviations (of all patches of the image), > 0.

    Returns:
        A scalar tensor, at least 0.
    """
    deviations, means = torch.std_mean(norms, dim=1, correction=0, keepdim=True)
    return (norms > means + factor * deviations).sum(dim=1).float().mean()


def norm_quantiles(norms: Tensor, levels: Sequence[float]) -> list[float]:
    """Returns quantiles of the patch norms of all images together, exact and without interpolation.

    Args:
        norms: L2 norms of patch tokens (..., N) of any number of images.
        levels: Quantile levels in [0, 1]; 1 is the largest norm.

    Returns:
        For every level the norm at rank ``ceil(level * (n - 1))`` of the n norms in ascending order, counted from 0.
    """
    return np.quantile(norms.cpu().numpy(), levels, method="higher").tolist()


def norm_statistics(norms: Tensor, factor: float = 8.0) -> dict[str, float]:
    """Returns the median patch norm of a set of images, and by how much and how often the largest norms exceed it.

    Args:
        norms: L2 norms of the patch tokens of one block, (B, N), float32, before any final norm.
        factor: Multiple of the median from which a token counts in ``share``, > 0.

    Returns:
        ``median`` of all norms, ``p99_over_median`` (:func:`outlier_ratio`), ``max_over_median`` (largest of all norms
        over ``median``), and ``share`` (share of tokens of at least ``factor`` times ``median``).
    """
    norms = norms.detach()
    median, largest = norm_quantiles(norms, (0.5, 1.0))
    return {
        "median": median,
        "p99_over_median": float(outlier_ratio(norms)),
        "max_over_median": largest / max(median, 1e-12),
        "share": float((norms >= factor * median).float().mean()),
    }
