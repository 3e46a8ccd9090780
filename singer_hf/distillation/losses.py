"""The terms of the objective and the normalisations of its targets: float32 inside, no host synchronisation."""

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.artifacts.gram import gram_matrix
from singer_hf.artifacts.neighbors import inlier_neighbor_means
from singer_hf.artifacts.outliers import row_median, token_norms

KD_LOSSES = ("mse", "cosine", "smooth_l1")
TARGET_NORMS = ("none", "token", "channel", "channel_token")
OUTLIER_LOSSES = ("absolute", "relative", "neighbors")
INFO_LOSSES = ("gram", "reference")


def normalize_tokens(tokens: Tensor) -> Tensor:
    """Tokens (..., D) with mean 0 and variance 1 over their channels: a LayerNorm without gain and bias, float32."""
    tokens = tokens.float()
    centered = tokens - tokens.mean(dim=-1, keepdim=True)
    # A bound, not an added epsilon, which would give the result a unit of length.
    return centered * centered.square().mean(dim=-1, keepdim=True).clamp(min=1e-12).rsqrt()


def standardize_channels(tokens: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """``(F - μ) / σ`` by channel, float32.

    Args:
        tokens: F, (B, T, D).
        mean: μ, (D,) or (T, D).
        deviation: σ, > 0, of the same shape.
    """
    return (tokens.float() - mean) / deviation


def kd_loss(refined: Tensor, projected: Tensor, kind: str = "mse") -> Tensor:
    """Distance between the teacher's refined and the student's projected tokens (L_KD).

    Args:
        refined: F̂, (B, T, D_T).
        projected: P(F^S), (B, T, D_T).
        kind: ``"mse"``: mean squared error (paper). ``"cosine"``: mean of 1 - cosine over the tokens. ``"smooth_l1"``:
            mean of the smooth L1 distance (Huber, threshold 1).

    Raises:
        ValueError: If the shapes differ.
    """
    if refined.shape != projected.shape:
        raise ValueError(f"refined tokens {tuple(refined.shape)} and projected {tuple(projected.shape)} must match")
    refined, projected = refined.float(), projected.float()
    if kind == "cosine":
        return 1 - F.cosine_similarity(projected, refined, dim=-1).mean()
    return F.smooth_l1_loss(projected, refined) if kind == "smooth_l1" else F.mse_loss(projected, refined)


def outlier_loss(refined_patches: Tensor, quantile: float = 0.97, unit: Tensor | float = 1.0) -> Tensor:
    """Mean squared excess of the norms above their image's quantile, over the patches above it (L_outlier).

    No gradient flows through the quantile. These are the longest patches of an image; which patches are artifacts is
    decided by :class:`singer_hf.artifacts.outliers.OutlierRule`.

    Args:
        refined_patches: Patch tokens (B, N, D) of F̂.
        quantile: γ in (0, 1).
        unit: Length in which the excess is measured, > 0: the scalar 1 (paper), or :func:`length_unit`, (B, 1).
    """
    norms = refined_patches.float().norm(dim=-1)
    threshold = torch.quantile(norms.detach(), quantile, dim=1, keepdim=True)
    excess = (norms - threshold).clamp(min=0) / unit
    count = (norms.detach() > threshold).sum().clamp(min=1)
    return excess.square().sum() / count


def neighbor_loss(refined: Tensor, raw: Tensor, artifacts: Tensor, grid: tuple[int, int], unit: Tensor) -> Tensor:
    """Squared distance of refined artifacts to the mean of the ordinary tokens around them, over all patches (ours).

    Ordinary patches count 0 in the mean, so that the loss does not depend on how a batch is split. A low norm says
    nothing about the direction of a token. The adapter is of low rank and sees one token at a time, so it can learn
    what the artifacts have in common and their neighbours have not, and keeps the rest of each token.

    Args:
        refined: Patch tokens (B, N, D) of F̂.
        raw: Patch tokens (B, N, D) of F; no gradient.
        artifacts: True at the artifacts, (B, N).
        grid: (rows, columns) of the patches.
        unit: Length in which the distance is measured, > 0, see :func:`length_unit`, (B, 1).
    """
    means, known = inlier_neighbor_means(raw.detach(), ~artifacts, grid)
    distances = ((refined.float() - means) / unit.unsqueeze(-1)).square().sum(dim=-1)
    return (distances * (artifacts & known)).mean()


def length_unit(raw_patches: Tensor) -> Tensor:
    """Median norm of each image's raw patch tokens (B, N, D), (B, 1), without gradient.

    By image, so that the loss of a batch does not depend on how it is split over processes and steps.
    """
    return row_median(token_norms(raw_patches.detach())).clamp(min=1e-12)


def info_loss(
    refined: Tensor, raw: Tensor, num_prefix_tokens: int = 0, kind: str = "gram", kept: Tensor | None = None
) -> Tensor:
    """Difference between the features that follow from the refined and from the raw tokens (L_info).

    Args:
        refined: Tokens (B, P+N, D) that follow from the refined features, such as ``block_{l+1}(F̂_l)``.
        raw: Tokens (B, P+N, D) that follow from the raw features, such as ``F_{l+1}``.
        num_prefix_tokens: P, the tokens in front of the patches.
        kind: ``"gram"``: mean squared difference of the patch Gram matrices (paper). ``"reference"``: mean squared
            difference of all tokens (the released code at intermediate blocks).
        kept: True at the patches whose similarities are to be kept, (B, N); the pairs of others count 0. None: all.
    """
    if kind == "reference":
        return F.mse_loss(refined.float(), raw.float())
    difference = gram_matrix(refined[:, num_prefix_tokens:]) - gram_matrix(raw[:, num_prefix_tokens:])
    if kept is not None:
        difference = difference * (kept.unsqueeze(1) & kept.unsqueeze(2))
    return difference.square().mean()


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


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Checks that an argument has one of its values.

    Args:
        name: Name of the argument.
        value: Its value.
        choices: Its possible values.

    Raises:
        ValueError: If it does not.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_kd_settings(kd_weight: float, kd_loss: str, target_norm: str) -> None:
    """Checks the settings of L_KD.

    Args:
        kd_weight: Weight of L_KD, >= 0.
        kd_loss: One of ``KD_LOSSES``.
        target_norm: One of ``TARGET_NORMS``.

    Raises:
        ValueError: If the weight is negative or a name is unknown.
    """
    check_weights(kd_weight=kd_weight)
    check_choice("kd_loss", kd_loss, KD_LOSSES)
    check_choice("target_norm", target_norm, TARGET_NORMS)


def check_singer_settings(
    outlier_weight: float,
    info_weight: float,
    outlier_quantile: float,
    info_loss: str,
    outlier_loss: str,
    info_share: float = 1.0,
) -> None:
    """Checks the settings of the terms that train the adapter.

    Args:
        outlier_weight: λ_outlier, >= 0.
        info_weight: λ_info, >= 0.
        outlier_quantile: γ in (0, 1).
        info_loss: One of ``INFO_LOSSES``.
        outlier_loss: One of ``OUTLIER_LOSSES``.
        info_share: Share of the images that L_info is taken of, in (0, 1].

    Raises:
        ValueError: If a weight is negative, the quantile is not in (0, 1), the share not in (0, 1], or a name is
            unknown.
    """
    check_weights(outlier_weight=outlier_weight, info_weight=info_weight)
    if not 0 < outlier_quantile < 1:
        raise ValueError(f"`outlier_quantile` must lie in (0, 1), got {outlier_quantile!r}")
    if not 0 < info_share <= 1:
        raise ValueError(f"`info_share` must lie in (0, 1], got {info_share!r}; 1 takes all images")
    check_choice("info_loss", info_loss, INFO_LOSSES)
    check_choice("outlier_loss", outlier_loss, OUTLIER_LOSSES)
