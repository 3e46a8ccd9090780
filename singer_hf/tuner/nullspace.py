"""Directions that a linear map, or a block of a network, reads least; and measures of how little it reads them.

Everything works on the D x D Gram matrix ``G = WᵀW`` of a read ``W`` (rows are outputs), so that a wide stack of reads
never has to be held or decomposed: the eigenvalues of G are the squared singular values of W, its eigenvectors the
right singular vectors. (METHOD: for row vectors ``x ↦ x W̃`` these are the left singular vectors of ``W̃ = Wᵀ``.)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 512  # rows of a read that are held in float64 at once


def accumulate_gram(matrices: Iterable[Tensor], hidden_size: int) -> Tensor:
    """The Gram matrix of a stack of reads, in float64 on the CPU, row block by row block.

    Args:
        matrices: Reads (out_features, D) of any floating type on any device.
        hidden_size: D.

    Returns:
        ``Σ WᵀW``, (D, D).
    """
    gram = torch.zeros(hidden_size, hidden_size, dtype=torch.float64)
    for matrix in matrices:
        for rows in matrix.detach().split(_ROWS):
            rows = rows.to("cpu", torch.float64)
            gram.addmm_(rows.T, rows)
    return gram


@dataclass(frozen=True)
class Spectrum:
    """What a read does to the D directions of its input, the least-read first.

    Attributes:
        singular_values: Ascending, (D,), float64.
        directions: Orthonormal columns, one per singular value, (D, D), float64.
    """

    singular_values: Tensor
    directions: Tensor

    @classmethod
    def of_gram(cls, gram: Tensor) -> "Spectrum":
        """Decomposes a Gram matrix (D, D), symmetric and positive semi-definite."""
        eigenvalues, eigenvectors = torch.linalg.eigh(gram.to("cpu", torch.float64))
        return cls(eigenvalues.clamp(min=0).sqrt(), eigenvectors)

    def smallest(self, r: int) -> Tensor:
        """Orthonormal basis (D, r) of the ``r`` directions with the smallest singular values (paper, Ñ)."""
        return self.directions[:, :r]

    def largest(self, r: int) -> Tensor:
        """Orthonormal basis (D, r) of the ``r`` directions with the largest singular values."""
        return self.directions[:, -r:]

    def effective_null_dimension(self, tolerance: float = 0.05) -> int:
        """Number of directions read at most ``tolerance`` times as strongly as the most-read one."""
        return int((self.singular_values <= tolerance * self.singular_values[-1]).sum())


def reference_basis(
    weight: Tensor, r: int, threshold: float = 0.05, generator: torch.Generator | None = None
) -> Tensor:
    """The released code's choice of directions: of those read below an absolute threshold, the MOST read ones first.

    Rows are filled with unit-norm random directions when fewer than ``r`` singular values lie below the threshold.

    Args:
        weight: The read W (out_features, D).
        r: Number of directions.
        threshold: Absolute bound on the singular values, > 0.
        generator: Source of the random directions.

    Returns:
        Basis (D, r) in float32; its columns are orthonormal only if none had to be filled in.
    """
    # Float64: the directions below the threshold lie so close together that float32 mixes them.
    _, singular_values, directions = torch.linalg.svd(weight.detach().to("cpu", torch.float64), full_matrices=True)
    padded = torch.zeros(directions.shape[0])
    padded[: len(singular_values)] = singular_values
    chosen = directions[padded < threshold][:r].float()  # descending order: the largest below the threshold come first
    missing = r - len(chosen)
    random = torch.nn.functional.normalize(torch.randn(missing, weight.shape[1], generator=generator), dim=1)
    return torch.cat([chosen, random]).T.contiguous()


def random_basis(hidden_size: int, r: int, generator: torch.Generator | None = None) -> Tensor:
    """Orthonormal basis (D, r) of a uniformly random subspace, float32."""
    return torch.linalg.qr(torch.randn(hidden_size, r, generator=generator)).Q


def jacobian_gram(
    write: Callable[[Tensor], Tensor], hidden_states: Tensor, probes: int = 4, generator: torch.Generator | None = None
) -> Tensor:
    """Σ over tokens of JᵀJ for one batch, J the Jacobian of what is written with respect to the tokens read.

    Unbiased: for a probe v ~ N(0, I) over all outputs, g = Jᵀv has E[g_i g_iᵀ] = J_iᵀJ_i at every token i, so vector-
    Jacobian products suffice and no Jacobian is ever held. Add up the results of all batches.

    Args:
        write: What the block adds to its tokens: (B, T, D) -> (B, T, D).
        hidden_states: Tokens (B, T, D) that enter the block.
        probes: Random cotangents for the batch, at least 1. The error falls with the square root of probes x tokens.
        generator: Source of the probes (on the CPU).

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
    """How much of an adapter's energy lies in the most-read and in the least-read directions (paper, E_prob, E_safe).

    For ``Φ`` (D, k) and orthonormal ``N`` (D, r) the share is ``‖NᵀΦ‖²_F / ‖Φ‖²_F``, in [0, 1]: 1 when every column of
    Φ lies in the span of N, r/D on average for random directions. The figures printed in the paper are consistent with
    its square root (random directions, r = 64, D = 1024: √(64/1024) = .25).

    Args:
        basis: Φ_down (D, k) or Φ_upᵀ (D, k): columns are directions in token space.
        spectrum: Spectrum of the read.
        r: Number of directions that count as most and as least read; k when None.

    Returns:
        ``{"e_prob": share in the r most-read, "e_safe": share in the r least-read directions}``.
    """
    basis = basis.detach().to("cpu", torch.float64)
    r = basis.shape[1] if r is None else r
    total = basis.square().sum()
    shares = {"e_prob": spectrum.largest(r), "e_safe": spectrum.smallest(r)}
    return {name: float((directions.T @ basis).square().sum() / total) for name, directions in shares.items()}


@torch.no_grad()
def leakage(
    write: Callable[[Tensor], Tensor],
    hidden_states: Tensor,
    basis: Tensor,
    relative_size: float = 0.3,
    num_prefix_tokens: int = 0,
    generator: torch.Generator | None = None,
) -> float:
    """True leakage of a subspace: how much a perturbation inside it changes what a non-linear block writes.

    Every patch token x_i is moved by ``relative_size * ‖x_i‖`` along a random direction of the subspace.

    Args:
        write: What the block adds to its tokens: ``u(x) = block(x) - x``, (B, P+N, D) -> same shape.
        hidden_states: Tokens (B, P+N, D) that enter the block.
        basis: Orthonormal basis (D, r) of the subspace.
        relative_size: Length of the perturbation in units of the token's own norm, > 0.
        num_prefix_tokens: Leading tokens that stay as they are.
        generator: Source of the random directions (on the CPU).

    Returns:
        ``‖u(x+δ) - u(x)‖ / ‖u(x)‖`` over the whole batch.
    """
    coefficients = torch.randn(*hidden_states.shape[:-1], basis.shape[1], generator=generator).to(hidden_states)
    direction = torch.nn.functional.normalize(coefficients @ basis.to(hidden_states).T, dim=-1)
    delta = relative_size * hidden_states.norm(dim=-1, keepdim=True) * direction
    delta[:, :num_prefix_tokens] = 0
    before, after = write(hidden_states), write(hidden_states + delta)
    return float((after - before).norm() / before.norm())
