"""Metrics of tokens at artifact places: the patches at which a teacher has outliers, or has planted ones.

A student can be told apart at these places even if its tokens there are not long. None stands for "not defined".
"""

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from singer_hf.artifacts.outliers import OutlierRule, token_norms
from singer_hf.vit.tokens import map_to_tokens, tokens_to_map

# With fewer places the metrics are noise.
MIN_PLACES = 10
# Standard deviation of the low-pass along the channels, in cycles per channel; the highest frequency is 0.5.
_LOW_PASS = 0.125


def artifact_places(norms: Tensor, rule: OutlierRule | None = None) -> Tensor:
    """Returns the outliers by the median and the MAD of all given patches together, bool (B, N).

    Images with many outliers, which would hide each other in their own median, do not differ from the others.

    Args:
        norms: L2 norms of the patch tokens of one block, (B, N).
        rule: The outlier rule; by default ``OutlierRule()``.
    """
    return (rule or OutlierRule()).mask(norms.flatten()).view_as(norms)


def resize_places(places: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Returns the patches of another grid that overlap a place, bool (B, N').

    Args:
        places: Artifact places, bool (B, N).
        grid: Their (rows, columns), N = rows * columns.
        target: The new (rows, columns).
    """
    if grid == target:
        return places
    cells = F.adaptive_max_pool2d(tokens_to_map(places.unsqueeze(-1).float(), grid), target)
    return map_to_tokens(cells)[..., 0] > 0


def mean_by_place(values: Tensor, places: Tensor) -> tuple[float | None, float | None]:
    """Returns the mean of values (B, N) at the places and elsewhere.

    Args:
        values: One value per patch, (B, N).
        places: Artifact places, bool (B, N).
    """
    return tuple(float(part.double().mean()) if len(part) else None for part in (values[places], values[~places]))


def place_metrics(tokens: Tensor, places: Tensor) -> dict[str, float | None]:
    """Returns how well the artifact places of a model can be told from its patch tokens alone.

    An AUROC of 0.5 means: not at all. Artifacts often have a preference for plain content, which a clean model shows
    too, so the value to compare with is that of a model without artifacts.

    Args:
        tokens: Patch tokens (M, N, D), before the final norm.
        places: Artifact places, bool (M, N).

    Returns:
        ``artifact_alignment`` and ``other_alignment`` (:func:`alignment`), ``auroc_norm`` (of the L2 norms),
        ``auroc_direction`` (:func:`direction_auroc`) and ``auroc_frequency`` (of :func:`channel_roughness`).
    """
    artifact, other = alignment(tokens, places)
    return {
        "artifact_alignment": artifact,
        "other_alignment": other,
        "auroc_norm": auroc(token_norms(tokens), places),
        "auroc_direction": direction_auroc(tokens, places),
        "auroc_frequency": auroc(channel_roughness(tokens), places),
    }


def alignment(tokens: Tensor, places: Tensor) -> tuple[float | None, float | None]:
    """Returns the mean cosine of all pairs of tokens at the places, and of all pairs of one there and one elsewhere.

    The pairs are within and across images. Each value is in [-1, 1].

    Args:
        tokens: Patch tokens (M, N, D).
        places: Artifact places, bool (M, N).
    """
    directions = F.normalize(tokens.float(), dim=-1)
    sums = [directions[mask].sum(0, dtype=torch.float64) for mask in (places, ~places)]
    counts = [int(mask.sum()) for mask in (places, ~places)]
    return pair_cosine(sums[0], counts[0]), cross_cosine(*sums, *counts)


def pair_cosine(summed: Tensor, count: int) -> float | None:
    """Returns the mean cosine of all pairs of ``count`` unit vectors: ``(‖Σu‖² - n) / (n (n - 1))``.

    Args:
        summed: Sum of the unit vectors, float64 (D,).
        count: Their number n; None is returned for n < 2.
    """
    if count < 2:
        return None
    cosine = (float(summed.square().sum()) - count) / (count * (count - 1))
    return min(max(cosine, -1.0), 1.0)


def cross_cosine(left: Tensor, right: Tensor, left_count: int, right_count: int) -> float | None:
    """Returns the mean cosine of all pairs of a unit vector of one set and one of another: ``Σu · Σv / (n m)``.

    Args:
        left: Sum of the unit vectors of one set, float64 (D,).
        right: Sum of those of the other, float64 (D,).
        left_count: Number n of vectors in ``left``.
        right_count: Number m of vectors in ``right``; None is returned if one of the sets is empty.
    """
    if not left_count or not right_count:
        return None
    return min(max(float(left @ right) / (left_count * right_count), -1.0), 1.0)


def auroc(scores: Tensor, places: Tensor) -> float | None:
    """Returns the area under the ROC curve of scores (...) for places, bool (...): P(score there > elsewhere).

    In [0, 1], ties count one half; None if no patch or every patch is a place.
    """
    if not places.any() or places.all():
        return None
    return float(roc_auc_score(places.flatten().cpu().numpy(), scores.flatten().float().cpu().numpy()))


def direction_auroc(tokens: Tensor, places: Tensor) -> float | None:
    """Returns the AUROC of the direction along which tokens at the places differ from the others.

    The direction is the difference of the two means in one half of the images. The score is the cosine of the tokens
    of the other half to it, after the mean token of the first half is subtracted. Even and odd images are the halves;
    the value is the mean over both ways, in [0, 1], or None if a half has no place.

    Args:
        tokens: Patch tokens (M, N, D), M >= 2.
        places: Artifact places, bool (M, N).
    """
    halves = [(tokens[start::2].float(), places[start::2]) for start in (0, 1)]
    if any(not mask.any() or mask.all() for _, mask in halves):
        return None
    return (_fitted_auroc(*halves[0], *halves[1]) + _fitted_auroc(*halves[1], *halves[0])) / 2


def _fitted_auroc(tokens: Tensor, places: Tensor, held_out: Tensor, labels: Tensor) -> float:
    direction = tokens[places].mean(0) - tokens[~places].mean(0)
    return auroc(F.cosine_similarity(held_out - tokens.mean((0, 1)), direction, dim=-1), labels)


def channel_roughness(tokens: Tensor) -> Tensor:
    """Returns the relative distance of tokens to their low-pass along the channels, a score that ignores the norm.

    ``‖x - x̃‖ / ‖x‖``, with x̃ the token after multiplication of its Fourier transform along the channels by the
    Gaussian ``g(f) = exp(-f² / 2σ²)``, σ = 0.125 cycles per channel. LaSt-ViT (arXiv 2602.22394) selects patches by
    ``x / |x - x̃|`` of each channel; the norm over the channels and σ are chosen here. The order of the channels has
    no meaning in a ViT, so the score mainly shows how much of a token is common to neighbouring channels.

    Args:
        tokens: Tokens (..., D).

    Returns:
        (...), float32, in [0, 1]: 0 for equal channels; also 0 for a token of zeros.
    """
    tokens, width = tokens.float(), tokens.shape[-1]
    frequencies = torch.fft.rfftfreq(width, device=tokens.device)
    high_pass = 1 - (-0.5 * (frequencies / _LOW_PASS).square()).exp()
    # Parseval: ‖x‖² = Σ|X|² / D. All frequencies but 0 and, for an even width, the highest stand for two.
    weights = high_pass.square() * torch.where((frequencies == 0) | (frequencies == 0.5), 1.0, 2.0) / width
    power = torch.view_as_real(torch.fft.rfft(tokens, dim=-1)).flatten(-2).square()
    share = power @ weights.repeat_interleave(2) / token_norms(tokens).square().clamp(min=1e-30)
    return share.clamp(0, 1).sqrt()
