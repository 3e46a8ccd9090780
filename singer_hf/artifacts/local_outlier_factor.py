"""The local outlier factor: how much sparser a token's surroundings are than those of its nearest neighbours."""

import torch
from torch import Tensor

# Added to reachability distances, so that tokens with many copies have a finite density.
_SMALLEST_DISTANCE = 1e-10


def local_outlier_factor(tokens: Tensor, num_neighbors: int = 30) -> Tensor:
    """Returns the local outlier factor of each token among the tokens of its image (Breunig et al., SIGMOD 2000).

    It is the mean density of a token's k nearest neighbours divided by its own density. The density is the inverse of
    the mean reachability distance to the k nearest neighbours, ``max(distance, distance of the neighbour to its own
    k-th neighbour)``. It does not depend on the scale of the tokens, and a long token counts as an outlier only if it
    is far from all others.

    Args:
        tokens: Tokens (B, N, D), N >= 2.
        num_neighbors: k >= 1; at most N - 1 are used.

    Returns:
        (B, N), float32; about 1 among tokens of equal density, larger for outliers.

    Raises:
        ValueError: If ``num_neighbors`` is less than 1 or there are fewer than two tokens.
    """
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` must be at least 1, got {num_neighbors!r}")
    if tokens.shape[1] < 2:
        raise ValueError(f"`tokens` must be at least 2 per image, got {tokens.shape[1]}; use larger images")
    distances, nearest = _neighbors(tokens.float(), min(num_neighbors, tokens.shape[1] - 1))
    farthest = distances[..., -1]
    reached = torch.maximum(distances, _of_neighbors(farthest, nearest))
    density = 1 / (reached.mean(dim=-1) + _SMALLEST_DISTANCE)
    return _of_neighbors(density, nearest).mean(dim=-1) / density


def _neighbors(tokens: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Distances (B, N, k), ascending, and indices (B, N, k) of the nearest other tokens."""
    # Products of centred tokens lose fewer digits where all tokens have a large part in common.
    centered = tokens - tokens.mean(dim=1, keepdim=True)
    with torch.autocast(tokens.device.type, enabled=False):  # it would take the product in half precision
        distances = torch.cdist(centered, centered)
    own = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    return distances.masked_fill(own, torch.inf).topk(number, dim=-1, largest=False)


def _of_neighbors(values: Tensor, nearest: Tensor) -> Tensor:
    """Values (B, N) of the neighbours with indices (B, N, k), same shape as the indices."""
    return values.gather(1, nearest.flatten(1)).view(nearest.shape)
