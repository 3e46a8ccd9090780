"""Streaming measures of token norms and outliers: sums over batches, in memory that does not grow with the images."""

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule

# The norm histogram: bins of equal width in log2. A quantile read off it is off by less than one bin, 0.27 %.
BINS_PER_OCTAVE = 256
_LOWEST, _OCTAVES = -24, 64
NUM_BINS = BINS_PER_OCTAVE * _OCTAVES
QUANTILE_ERROR = 2 ** (1 / BINS_PER_OCTAVE) - 1


def histogram_bins(norms: Tensor) -> Tensor:
    """Index of the histogram bin of each norm, int64, in [0, NUM_BINS)."""
    position = (norms.clamp(min=2.0**_LOWEST).log2() - _LOWEST) * BINS_PER_OCTAVE
    return position.long().clamp(0, NUM_BINS - 1)


def histogram_quantile(counts: Tensor, quantile: float, lowest: float, highest: float) -> float:
    """The norm at rank ``ceil(quantile * n)`` of n, read off a histogram to within one bin.

    Args:
        counts: Counts (NUM_BINS,).
        quantile: In [0, 1].
        lowest: Smallest norm, exact.
        highest: Largest norm, exact.
    """
    cumulative = counts.cumsum(0)
    rank = max(quantile * int(cumulative[-1]), 1.0)
    index = int(torch.searchsorted(cumulative, torch.tensor([rank - 1e-6], dtype=torch.float64).ceil().long()))
    centre = 2.0 ** ((index + 0.5) / BINS_PER_OCTAVE + _LOWEST)
    return min(max(centre, lowest), highest)


def coarse_histogram(counts: Tensor, bins_per_octave: int = 8) -> dict[str, list[float]]:
    """The occupied range of a histogram in wider bins: ``edges`` (n + 1) and ``counts`` (n)."""
    coarse = counts.unflatten(0, (-1, BINS_PER_OCTAVE // bins_per_octave)).sum(1)
    occupied = coarse.nonzero().flatten()
    first, last = int(occupied[0]), int(occupied[-1])
    edges = 2.0 ** (torch.arange(first, last + 2, dtype=torch.float64) / bins_per_octave + _LOWEST)
    return {"edges": edges.tolist(), "counts": coarse[first : last + 1].tolist()}


def edge_masks(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The outermost ring of a grid and its corners, each bool (rows, columns); the ring holds the corners."""
    ring = torch.ones(grid, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    corner = torch.zeros(grid, dtype=torch.bool)
    corner[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    return ring, corner


def measure_batch(
    patch_tokens: list[Tensor], texture: Tensor, rule: OutlierRule
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Everything that is summed over a batch, for L blocks at once.

    Args:
        patch_tokens: L tensors (B, N, D), before the final norm.
        texture: Texture of the patches (B, N), or None where it is not known.
        rule: What counts as an outlier.

    Returns:
        Sums (first dimension L, float64 or int64, on the CPU), the extreme norms ``lowest`` and ``highest`` (L,), and
        the outliers as bool (L, B, N) on the device of the tokens.
    """
    norms = torch.stack([tokens.float().norm(dim=-1) for tokens in patch_tokens])
    thresholds, medians = rule.thresholds(norms)
    mask = norms > thresholds
    sums = _norm_sums(norms, medians, mask, rule) | _texture_sums(texture, mask)
    blocks = [_token_sums(tokens, *pair) for tokens, *pair in zip(patch_tokens, norms, mask, strict=True)]
    sums |= {name: torch.stack([block[name] for block in blocks]) for name in blocks[0]}
    sums = {name: value.cpu() for name, value in sums.items()}
    extremes = {"lowest": norms.amin((1, 2)).double().cpu(), "highest": norms.amax((1, 2)).double().cpu()}
    return sums, extremes, mask


def _norm_sums(norms: Tensor, medians: Tensor, mask: Tensor, rule: OutlierRule) -> dict[str, Tensor]:
    lengths = norms.double()
    kept = mask.double()
    offsets = NUM_BINS * torch.arange(len(norms), device=norms.device)[:, None, None]
    counts = torch.bincount((histogram_bins(norms) + offsets).flatten(), minlength=len(norms) * NUM_BINS)
    above = norms > (float("inf") if rule.absolute is None else rule.absolute)
    return {
        "histogram": counts.view(len(norms), NUM_BINS),
        "norm": lengths.sum((1, 2)),
        "norm_outliers": (lengths * kept).sum((1, 2)),
        "square": lengths.square().sum((1, 2)),
        "square_outliers": (lengths.square() * kept).sum((1, 2)),
        "strength": (lengths / medians * kept).sum((1, 2)),
        "above_absolute": above.sum((1, 2)),
        "images_with_outliers": mask.any(-1).sum(-1),
        "positions": mask.sum(1),
        "persistent": torch.cat(
            [(mask[1:] & mask[:-1]).sum((1, 2)), torch.zeros_like(mask[:1, 0, 0], dtype=torch.long)]
        ),
    }


def _texture_sums(texture: Tensor, mask: Tensor) -> dict[str, Tensor]:
    count = texture.shape[1]
    # Twice sorted: the rank of each patch among those of its image, 0 for the smoothest and 1 for the roughest.
    rank = texture.argsort(dim=1).argsort(dim=1).double() / max(count - 1, 1)
    kept = mask.double()
    return {
        "texture": texture.double().sum().expand(len(mask)),
        "texture_outliers": (texture.double() * kept).sum((1, 2)),
        "texture_rank_outliers": (rank * kept).sum((1, 2)),
    }


def _token_sums(tokens: Tensor, norms: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Sums over the tokens (B, N, D) of one block: unit vectors, and distances to the image's mean token."""
    tokens = tokens.float()
    inverse = norms.clamp(min=1e-30).reciprocal()
    weights = torch.stack([inverse * mask, inverse], dim=1)
    directions = (weights @ tokens).double().sum(0)
    deviations = (tokens - tokens.mean(1, keepdim=True)).norm(dim=-1).double()
    kept = mask.double()
    return {
        "direction_outliers": directions[0],
        "direction": directions[1],
        "deviation": deviations.sum(),
        "deviation_outliers": (deviations * kept).sum(),
        "deviation_square": deviations.square().sum(),
        "deviation_square_outliers": (deviations.square() * kept).sum(),
    }


class StreamingSums:
    """Adds up what :func:`measure_batch` gives, batch after batch; holds one batch worth of sums."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.lowest: Tensor | None = None
        self.highest: Tensor | None = None

    def add(self, sums: dict[str, Tensor], extremes: dict[str, Tensor]) -> None:
        """Adds one batch."""
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        lowest, highest = extremes["lowest"], extremes["highest"]
        self.lowest = lowest if self.lowest is None else torch.minimum(self.lowest, lowest)
        self.highest = highest if self.highest is None else torch.maximum(self.highest, highest)

    def __getitem__(self, name: str) -> Tensor:
        return self.sums[name]
