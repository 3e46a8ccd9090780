"""Null spaces of linear maps and of transformer blocks, and metrics of how much a subspace affects a block.

All functions use the D x D Gram matrix ``G = WᵀW`` of a linear map ``W`` (out_features, D), so a wide stack of maps is
never held or decomposed: the eigenvalues of G are the squared singular values of W, its eigenvectors the right
singular vectors. (In the paper's row-vector convention ``x ↦ x W̃`` these are the left singular vectors of ``W̃ = Wᵀ``.)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# A direction counts as null up to this share of the largest singular value (ours) ...
NULL_TOLERANCE = 0.05
# ... or below this absolute singular value (released code).
RELEASED_THRESHOLD = 0.05
_ROWS = 512  # rows of a linear map that are held in float64 at once


def accumulate_gram(matrices: Iterable[Tensor], hidden_size: int) -> Tensor:
    """Computes the Gram matrix of a stack of linear maps.

    Args:
        matrices: Linear maps W (out_features, D) of any floating type on any device.
        hidden_size: Width D.

    Returns:
        ``Σ WᵀW``, (D, D), float64, on the CPU.
    """
    gram = torch.zeros(hidden_size, hidden_size, dtype=torch.float64)
    for matrix in matrices:
        for rows in matrix.detach().split(_ROWS):
            rows = rows.cpu().double()  # not in one call: `mps` would convert before it copies
            gram.addmm_(rows.T, rows)
    return gram


@dataclass(frozen=True)
class Spectrum:
    """Singular values and right singular vectors of a linear map with D inputs, in ascending order.

    Attributes:
        singular_values: (D,), ascending, float64.
        directions: Right singular vectors as orthonormal columns, (D, D), float64.
    """

    singular_values: Tensor
    directions: Tensor

    @classmethod
    def of_gram(cls, gram: Tensor) -> "Spectrum":
        """Decomposes a symmetric, positive semi-definite Gram matrix (D, D)."""
        eigenvalues, eigenvectors = torch.linalg.eigh(gram.cpu().double())
        return cls(eigenvalues.clamp(min=0).sqrt(), eigenvectors)

    def smallest(self, r: int) -> Tensor:
        """Orthonormal basis (D, r) of the ``r`` directions with the smallest singular values (Ñ of the paper)."""
        return self.directions[:, :r]

    def largest(self, r: int) -> Tensor:
        """Orthonormal basis (D, r) of the ``r`` directions with the largest singular values."""
        return self.directions[:, -r:]

    def effective_null_dimension(self, tolerance: float = NULL_TOLERANCE) -> int:
        """Number of singular values of at most ``tolerance`` times the largest one."""
        return int((self.singular_values <= tolerance * self.singular_values[-1]).sum())


def reference_basis(
    weight: Tensor, r: int, threshold: float = RELEASED_THRESHOLD, generator: torch.Generator | None = None
) -> Tensor:
    """Selects directions as the released code does, which differs from the paper.

    Of all directions with a singular value below an absolute threshold, the released code takes the r with the LARGEST
    singular values, and adds random unit vectors if there are fewer than r.

    Args:
        weight: The linear map W (out_features, D).
        r: Number of directions, at least 1.
        threshold: Absolute bound on the singular values, > 0.
        generator: Random generator for the added directions (on the CPU).

    Returns:
        Basis (D, r) in float32; its columns are orthonormal only if no random ones were added.
    """
    # Float64: the directions below the threshold lie so close together that float32 mixes them.
    _, singular_values, directions = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=True)
    padded = torch.zeros(directions.shape[0])
    padded[: len(singular_values)] = singular_values
    chosen = directions[padded < threshold][:r].float()  # singular values descend: the largest come first
    missing = r - len(chosen)
    random = torch.nn.functional.normalize(torch.randn(missing, weight.shape[1], generator=generator), dim=1)
    return torch.cat([chosen, random]).T.contiguous()


def random_basis(hidden_size: int, r: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws an orthonormal basis of a uniformly random subspace.

    Args:
        hidden_size: Width D.
        r: Number of directions, 1 to D.
        generator: Random generator (on the CPU).

    Returns:
        Basis (D, r), float32.
    """
    return torch.linalg.qr(torch.randn(hidden_size, r, generator=generator)).Q


def jacobian_gram(
    write: Callable[[Tensor], Tensor], hidden_states: Tensor, probes: int = 4, generator: torch.Generator | None = None
) -> Tensor:
    """Estimates the sum of JᵀJ over the tokens of one batch, J the Jacobian of a block's update u at a token.

    The estimate is unbiased: for a probe v ~ N(0, I) over all outputs, g = Jᵀv has E[g_i g_iᵀ] = J_iᵀJ_i at every
    token i, so vector-Jacobian products are enough and no Jacobian is held in memory. Add up the results of all
    batches.

    Args:
        write: The block's update ``u(x) = block(x) - x``: (B, T, D) -> (B, T, D).
        hidden_states: Input tokens of the block (B, T, D).
        probes: Number of random cotangents for the batch, at least 1. The error falls with the square root of
            probes x tokens.
        generator: Random generator of the probes (on the CPU).

    Returns:
        Gram matrix (D, D), float64, on the CPU.
    """
    tokens = hidden_states.detach().requires_grad_()
    with torch.enable_grad():
        written = write(tokens)
    cotangents = (torch.randn(written.shape, generator=generator).to(written) for _ in range(probes))
    gradients = (torch.autograd.grad(written, tokens, v, retain_graph=True)[0].flatten(0, -2) for v in cotangents)
    return accumulate_gram(gradients, tokens.shape[-1]) / probes


def energy_shares(basis: Tensor, spectrum: Spectrum, r: int | None = None) -> dict[str, float]:
    """Computes the shares of an adapter's energy in problematic and in safe directions (paper, E_prob and E_safe).

    Problematic are the r directions with the largest singular values of the next block, safe the r directions with the
    smallest. For ``Φ`` (D, k) and orthonormal ``N`` (D, r) the share is ``‖NᵀΦ‖²_F / ‖Φ‖²_F``: 1 if every column of Φ
    lies in the span of N, r/D on average for random directions. The values printed in the paper are consistent with
    its square root (random directions, r = 64, D = 1024: √(64/1024) = .25).

    Args:
        basis: Φ_down (D, k) or Φ_upᵀ (D, k); columns are directions in token space.
        spectrum: Spectrum of the null-space source.
        r: Number r of problematic and of safe directions, 1 to D; k if None.

    Returns:
        ``{"e_prob": share in the problematic directions, "e_safe": share in the safe ones}``, both in [0, 1]; NaN for
        a Φ of zeros.
    """
    basis = basis.detach().cpu().double()
    r = basis.shape[1] if r is None else r
    total = basis.square().sum()
    shares = {"e_prob": spectrum.largest(r), "e_safe": spectrum.smallest(r)}
    return {name: float((directions.T @ basis).square().sum() / total) for name, directions in shares.items()}


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """Returns ``‖after - before‖ / ‖before‖`` over all entries, such as of what a block adds to its patch tokens.

    Args:
        before: Patch tokens, or what a block adds to them, (..., N, D).
        after: The same after a change of the block's input, (..., N, D).

    Returns:
        A scalar tensor, >= 0.
    """
    return (after - before).norm() / before.norm().clamp(min=1e-12)


@torch.no_grad()
def leakage(
    write: Callable[[Tensor], Tensor],
    hidden_states: Tensor,
    basis: Tensor,
    relative_size: float = 0.3,
    num_prefix_tokens: int = 0,
    generator: torch.Generator | None = None,
) -> float:
    """Computes the leakage of a subspace: how much a perturbation inside it changes the update of a non-linear block.

    Every patch token x_i is moved by ``relative_size * ‖x_i‖`` along a random direction of the subspace.

    Args:
        write: The block's update ``u(x) = block(x) - x``: (B, P+N, D) -> (B, P+N, D).
        hidden_states: Input tokens of the block (B, P+N, D).
        basis: Orthonormal basis (D, r) of the subspace.
        relative_size: Length of the perturbation in units of the token's own norm, > 0.
        num_prefix_tokens: Number P of leading tokens that are not moved.
        generator: Random generator of the directions (on the CPU).

    Returns:
        ``‖u(x+δ) - u(x)‖ / ‖u(x)‖`` over the patch tokens of the batch, see :func:`relative_change`.
    """
    coefficients = torch.randn(*hidden_states.shape[:-1], basis.shape[1], generator=generator).to(hidden_states)
    direction = torch.nn.functional.normalize(coefficients @ basis.to(hidden_states).T, dim=-1)
    delta = relative_size * hidden_states.norm(dim=-1, keepdim=True) * direction
    delta[:, :num_prefix_tokens] = 0
    before, after = (write(tokens)[:, num_prefix_tokens:] for tokens in (hidden_states, hidden_states + delta))
    return float(relative_change(before, after))
