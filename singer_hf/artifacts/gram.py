"""The patch Gram matrix of the paper: cosine similarities of all pairs of patches."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def gram_matrix(tokens: Tensor) -> Tensor:
    """Returns the cosine similarities of all pairs of patches, ``G(X) = X̄ X̄ᵀ`` (paper, section 3).

    Args:
        tokens: Patch tokens (B, N, D).

    Returns:
        (B, N, N), float32, values in [-1, 1].
    """
    tokens = tokens.float()
    with full_precision(tokens.device.type):
        products = tokens @ tokens.transpose(1, 2)
    # Scaling the products is cheaper than normalising the tokens first.
    inverse_norms = products.diagonal(dim1=1, dim2=2).clamp(min=1e-24).rsqrt()
    return products * inverse_norms.unsqueeze(1) * inverse_norms.unsqueeze(2)


def full_precision(device_type: str) -> AbstractContextManager:
    """Returns a context in which autocast does not take matrix products in half precision."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()
