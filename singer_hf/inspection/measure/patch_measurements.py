"""Measurements of the patch tokens of several blocks, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule, outlier_ratio, token_norms
from singer_hf.artifacts.places import channel_roughness


@dataclass(frozen=True)
class PatchMeasurements:
    """Measurements of the patch tokens of L blocks on M images with N patches each, on the CPU.

    They take about 9 L N bytes per image: 42 kB for ViT-L/16 at 224 x 224 pixels (24 blocks, 196 patches), so 21 MB
    for 500 images.

    Attributes:
        norms: L2 norms of the tokens before the final norm, float32 (L, M, N).
        deviations: L2 distances of the tokens to the mean patch token of their image, float32 (L, M, N).
        outliers: Which tokens are outliers, bool (L, M, N).
        texture: Texture of the patches, float32 (M, N).
        outlier_directions: Sum of the outliers scaled to unit length, float64 (L, D).
        other_directions: Sum of all other tokens scaled to unit length, float64 (L, D).
        former_directions: Sum of the former outliers scaled to unit length, float64 (L, D). These are patches whose
            raw tokens were outliers in an earlier block, or in this one before refinement, and that are none now.
        former_counts: Number of former outliers, int64 (L,).
        frequencies: Sums of :func:`singer_hf.artifacts.places.channel_roughness` over the outliers and over the other
            patches, and of its 99th percentile over its median over images, float64 (L, 3).
    """

    norms: Tensor
    deviations: Tensor
    outliers: Tensor
    texture: Tensor
    outlier_directions: Tensor
    other_directions: Tensor
    former_directions: Tensor
    former_counts: Tensor
    frequencies: Tensor

    @classmethod
    def join(cls, batches: Sequence["PatchMeasurements"]) -> "PatchMeasurements":
        """Returns the measurements of all images of the batches."""
        return cls(
            norms=torch.cat([batch.norms for batch in batches], dim=1),
            deviations=torch.cat([batch.deviations for batch in batches], dim=1),
            outliers=torch.cat([batch.outliers for batch in batches], dim=1),
            texture=torch.cat([batch.texture for batch in batches]),
            outlier_directions=sum(batch.outlier_directions for batch in batches),
            other_directions=sum(batch.other_directions for batch in batches),
            former_directions=sum(batch.former_directions for batch in batches),
            former_counts=sum(batch.former_counts for batch in batches),
            frequencies=sum(batch.frequencies for batch in batches),
        )


def measure_batch(
    patch_tokens: Sequence[Tensor], texture: Tensor, rule: OutlierRule, seen: Tensor | None = None
) -> PatchMeasurements:
    """Measures the patch tokens of L blocks on one batch of images.

    Args:
        patch_tokens: L tensors (B, N, D), before the final norm.
        texture: Texture of the patches (B, N); see :func:`singer_hf.artifacts.texture.patch_variance`.
        rule: The outlier rule.
        seen: Which patches have been outliers up to each block, bool (L, B, N); by default those of these tokens.
    """
    norms = torch.stack([token_norms(tokens) for tokens in patch_tokens])
    outliers = rule.mask(norms)
    deviations = torch.stack([token_norms(_centred(tokens)) for tokens in patch_tokens])
    former = (outliers_so_far(outliers) if seen is None else seen.to(outliers.device)) & ~outliers
    directions = [_direction_sums(*block) for block in zip(patch_tokens, norms, outliers, former, strict=True)]
    outlier_directions, other_directions, former_directions = torch.stack(directions, dim=1)
    return PatchMeasurements(
        norms.cpu(),
        deviations.cpu(),
        outliers.cpu(),
        texture.float().cpu(),
        outlier_directions,
        other_directions,
        former_directions,
        former.sum((1, 2)).cpu(),
        torch.stack([_frequency_sums(*block) for block in zip(patch_tokens, outliers, strict=True)]),
    )


def outliers_so_far(outliers: Tensor) -> Tensor:
    """Returns which patches are outliers in a block or in one before it, from masks (L, B, N); same shape."""
    return outliers.cumsum(0) > 0


def _centred(tokens: Tensor) -> Tensor:
    tokens = tokens.float()
    return tokens - tokens.mean(1, keepdim=True)


def _direction_sums(tokens: Tensor, norms: Tensor, outliers: Tensor, former: Tensor) -> Tensor:
    """Returns the sums (3, D) of the tokens (B, N, D) at unit length: outliers, all others, former outliers."""
    inverse = norms.clamp(min=1e-30).reciprocal()
    weights = torch.stack([inverse * outliers, inverse * ~outliers, inverse * former], dim=1)
    return (weights @ tokens.float()).cpu().double().sum(0)


def _frequency_sums(tokens: Tensor, outliers: Tensor) -> Tensor:
    """Returns the sums (3,) of the roughness of tokens (B, N, D): at outliers, elsewhere, of 99 % / median."""
    scores, outliers = channel_roughness(tokens).cpu(), outliers.cpu()
    parts = scores[outliers].double().sum(), scores[~outliers].double().sum()
    return torch.stack([*parts, outlier_ratio(scores).double() * len(scores)])
