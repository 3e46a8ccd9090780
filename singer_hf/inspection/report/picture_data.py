"""What pictures are drawn from: colours for features, choices of blocks, names that fit. No drawing here."""

import torch
from torch import Tensor


def pca_colours(features: Tensor) -> Tensor:
    """The three leading principal components of all tokens, each from its 1st to its 99th percentile.

    Args:
        features: Patch tokens (K, N, D); one basis serves all K images.

    Returns:
        Red, green and blue, (K, N, 3), in [0, 1].
    """
    flat = features.flatten(0, 1).double()
    centred = flat - flat.mean(0)
    _, _, basis = torch.linalg.svd(centred.T @ centred, full_matrices=False)
    basis = basis[:3].T
    # The sign of a component is free: the largest entry decides, so that the same features give the same picture.
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    components = centred @ basis
    low, high = torch.quantile(components, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    colours = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colours.view(*features.shape[:2], -1)


def relative_norms(features: Tensor) -> Tensor:
    """L2 norms (K, N) of patch tokens (K, N, D) over the median of their image."""
    norms = features.norm(dim=-1)
    return norms / norms.median(dim=1, keepdim=True).values.clamp(min=1e-12)
