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

    No gradient flows through the quantile.

    Args:
        refined_patches: Patch tokens (B, N, D) of F̂.
        quantile: γ in (0, 1).
    """
    norms = refined_patches.float().norm(dim=-1)
    threshold = torch.quantile(norms.detach(), quantile, dim=1, keepdim=True)
    excess = (norms - threshold).clamp(min=0)
    count = (norms.detach() > threshold).sum().clamp(min=1)
    return excess.square().sum() / count


def info_loss(refined_read: Tensor, raw_read: Tensor) -> Tensor:
    """Mean squared difference of two patch Gram matrices (paper, L_info): what the next block makes of F̂ and of F.

    Args:
        refined_read: Patch tokens (B, N, D) that follow from the refined features.
        raw_read: Patch tokens (B, N, D) that follow from the raw features.
    """
    return F.mse_loss(gram_matrix(refined_read), gram_matrix(raw_read))


def check_loss_settings(
    kd_weight: float, outlier_weight: float, info_weight: float, outlier_quantile: float, info_loss: str
) -> None:
    """Checks the settings of the objective.

    Raises:
        ValueError: If a weight is negative, the quantile not in (0, 1), or ``info_loss`` unknown.
    """
    for name, weight in (("kd_weight", kd_weight), ("outlier_weight", outlier_weight), ("info_weight", info_weight)):
        if not weight >= 0:
            raise ValueError(f"`{name}` must be at least 0, got {weight!r}")
    if not 0 < outlier_quantile < 1:
        raise ValueError(f"`outlier_quantile` must lie in (0, 1), got {outlier_quantile!r}")
    if info_loss not in INFO_LOSSES:
        raise ValueError(f"`info_loss` must be one of {', '.join(map(repr, INFO_LOSSES))}, got {info_loss!r}")
