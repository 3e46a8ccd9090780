"""High-norm outlier tokens: the rule, and the ratio of the 99th percentile to the median."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutlierRule:
    """Which patch tokens of an image count as high-norm outliers.

    A token is one if its L2 norm exceeds ``median + mad_factor * max(MAD, mad_floor * median)``, both taken over the
    patch tokens of the same image in the same block; MAD is the plain median absolute deviation, not scaled to a
    standard deviation. The floor keeps tokens that hardly differ (a MAD near 0) from making outliers of each other:
    with the defaults an outlier is at least twice as long as the median token of its image.

    Args:
        mad_factor: k, > 0.
        mad_floor: Smallest MAD in units of the median, >= 0.
        absolute: A norm, > 0, above which tokens are counted as well, or None. Says nothing across models.

    Raises:
        ValueError: If a number is out of range.
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
        """Thresholds and medians (..., 1) of norms (..., N), along the last dimension."""
        median = middle(norms)
        mad = middle((norms - median).abs())
        return median + self.mad_factor * torch.maximum(mad, self.mad_floor * median), median

    def mask(self, norms: Tensor) -> Tensor:
        """Which of the tokens with norms (..., N) are outliers among the N, bool (..., N)."""
        return norms > self.thresholds(norms)[0]

    def to_dict(self) -> dict[str, float | None]:
        """The rule as plain data."""
        return asdict(self)


def middle(values: Tensor) -> Tensor:
    """Median of (..., N) along the last dimension, (..., 1); the mean of the two in the middle if N is even."""
    ordered, count = values.sort(dim=-1).values, values.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]).unsqueeze(-1) / 2


def outlier_ratio(patch_tokens: Tensor) -> Tensor:
    """99th percentile over median of the L2 norms of an image's patches, mean over images; 1 means no outliers.

    Args:
        patch_tokens: (B, N, D).
    """
    return outlier_ratio_of_norms(patch_tokens.float().norm(dim=-1))


def outlier_ratio_of_norms(norms: Tensor) -> Tensor:
    """:func:`outlier_ratio` of patch norms (B, N)."""
    quantiles = torch.quantile(norms, torch.tensor([0.5, 0.99], device=norms.device), dim=1)
    return (quantiles[1] / quantiles[0].clamp(min=1e-12)).mean()


def norm_statistics(patch_tokens: Tensor, factor: float = 8.0) -> dict[str, float]:
    """Median L2 norm of patch tokens, and how far and how often the largest leave it.

    Args:
        patch_tokens: Patch tokens of one block over many images, (..., D), before any final norm.
        factor: From which multiple of the median a token counts as an outlier.

    Returns:
        ``median``, ``p99_ratio`` and ``max_ratio`` (99th percentile and largest norm over the median), and ``share``
        (share of tokens of at least ``factor`` times the median norm).
    """
    norms = patch_tokens.detach().float().norm(dim=-1).flatten().sort().values
    median = norms[len(norms) // 2].item()
    return {
        "median": median,
        "p99_ratio": norms[int(0.99 * (len(norms) - 1))].item() / median,
        "max_ratio": norms[-1].item() / median,
        "share": (norms >= factor * median).float().mean().item(),
    }
