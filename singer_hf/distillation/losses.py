"""The three terms of the SiNGER objective: tensors in, scalar out, float32 inside, no host synchronisation."""

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.artifacts.gram import gram_matrix

INFO_LOSSES = ("gram", "reference")


def kd_loss(refined: Tensor, projected: Tensor) -> Tensor:
    """Mean squared error between the teacher's refined and the student's projected tokens (paper, L_KD).

    Args:
        refined: F̂, (B, T, D_T).
        projected: P(F^S), (B, T, D_T).

    Raises:
        ValueError: If the shapes differ.
    """
    if refined.shape != projected.shape:
        raise ValueError(f"refined tokens {tuple(refined.shape)} and projected {tuple(projected.shape)} must match")
    return F.mse_loss(projected.float(), refined.float())


def outlier_loss(refined_patches: Tensor, quantile: float = 0.97) -> Tensor:
    """Mean squared excess of the norms above their image's quantile, over the patches above it (paper, L_outlier).

    No gradient flows through the quantile. These are the longest patches of an image; which patches are artifacts is
    decided by :class:`singer_hf.artifacts.outliers.OutlierRule`.

    Args:
        refined_patches: Patch tokens (B, N, D) of F̂.
        quantile: γ in (0, 1).
    """
    norms = refined_patches.float().norm(dim=-1)
    threshold = torch.quantile(norms.detach(), quantile, dim=1, keepdim=True)
    excess = (norms - threshold).clamp(min=0)
    count = (norms.detach() > threshold).sum().clamp(min=1)
    return excess.square().sum() / count


def info_loss(refined: Tensor, raw: Tensor, num_prefix_tokens: int = 0, kind: str = "gram") -> Tensor:
    """Difference between the features that follow from the refined and from the raw tokens (L_info).

    Args:
        refined: Tokens (B, P+N, D) that follow from the refined features, such as ``block_{l+1}(F̂_l)``.
        raw: Tokens (B, P+N, D) that follow from the raw features, such as ``F_{l+1}``.
        num_prefix_tokens: P, the tokens in front of the patches.
        kind: ``"gram"``: mean squared difference of the patch Gram matrices (paper). ``"reference"``: mean squared
            difference of all tokens (the released code at intermediate blocks).
    """
    if kind == "reference":
        return F.mse_loss(refined.float(), raw.float())
    return F.mse_loss(gram_matrix(refined[:, num_prefix_tokens:]), gram_matrix(raw[:, num_prefix_tokens:]))


def check_weights(**weights: float) -> None:
    """Checks that the weights of loss terms are not negative.

    Args:
        **weights: Weight by the name of its argument.

    Raises:
        ValueError: If a weight is negative or NaN.
    """
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"`{name}` must be at least 0, got {weight!r}")


def check_singer_settings(outlier_weight: float, info_weight: float, outlier_quantile: float, info_loss: str) -> None:
    """Checks the settings of the terms that train the adapter.

    Args:
        outlier_weight: λ_outlier, >= 0.
        info_weight: λ_info, >= 0.
        outlier_quantile: γ in (0, 1).
        info_loss: One of ``INFO_LOSSES``.

    Raises:
        ValueError: If a weight is negative, the quantile is not in (0, 1), or ``info_loss`` is unknown.
    """
    check_weights(outlier_weight=outlier_weight, info_weight=info_weight)
    if not 0 < outlier_quantile < 1:
        raise ValueError(f"`outlier_quantile` must lie in (0, 1), got {outlier_quantile!r}")
    if info_loss not in INFO_LOSSES:
        raise ValueError(f"`info_loss` must be one of {', '.join(map(repr, INFO_LOSSES))}, got {info_loss!r}")
