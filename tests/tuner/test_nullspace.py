"""Null-space bases and their metrics against oracles."""

import math

import pytest
import torch
from torch import Tensor, nn

from singer_hf.tuner.nullspace import (
    Spectrum,
    accumulate_gram,
    energy_shares,
    jacobian_gram,
    leakage,
    random_basis,
    reference_basis,
)

D = 12


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _linear_map(singular_values: list[float], rows: int = 20, seed: int = 0) -> Tensor:
    """A linear map (rows, D) with the given singular values along random directions."""
    generator = _generator(seed)
    left = torch.linalg.qr(torch.randn(rows, D, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    return (left @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ right.T).float()


def _projector(basis: Tensor) -> Tensor:
    return basis.double() @ basis.double().T


@pytest.mark.parametrize("rows", [4, D, 50], ids=["fewer rows than D", "square", "wide stack"])
@pytest.mark.parametrize("r", [1, 5, D])
def test_smallest_directions_are_those_of_an_svd_and_orthonormal(rows, r):
    weight = torch.randn(rows, D, generator=_generator())
    spectrum = Spectrum.of_gram(accumulate_gram([weight], D))
    basis = spectrum.smallest(r)
    _, values, directions = torch.linalg.svd(weight.double(), full_matrices=True)
    padded = torch.cat([values, torch.zeros(D - len(values))])
    torch.testing.assert_close(spectrum.singular_values, padded.flip(0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(r, dtype=torch.float64))
    # The smallest output energy of any r-dimensional subspace: the sum of the r smallest squared singular values.
    least = padded.flip(0)[:r].square().sum()
    torch.testing.assert_close((weight.double() @ basis).square().sum(), least, atol=1e-9, rtol=1e-6)
    if D - rows in (0, r) or r == D or rows > D:  # the subspace is unique
        torch.testing.assert_close(_projector(basis), _projector(directions[D - r :].T), atol=1e-6, rtol=0)


def test_largest_directions_are_those_of_an_svd():
    weight = torch.randn(20, D, generator=_generator())
    _, _, directions = torch.linalg.svd(weight.double())
    basis = Spectrum.of_gram(weight.T @ weight).largest(3)
    torch.testing.assert_close(_projector(basis), _projector(directions[:3].T), atol=1e-5, rtol=0)


def test_the_gram_of_a_stack_is_that_of_the_concatenated_maps():
    maps = [torch.randn(rows, D, generator=_generator(rows)) for rows in (3, 12, 31)]
    stacked = torch.cat(maps).double()
    gram = accumulate_gram((item.bfloat16() if len(item) == 3 else item for item in maps), D)
    stacked[:3] = maps[0].bfloat16().double()
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, stacked.T @ stacked)


def test_rounding_below_zero_gives_singular_value_zero():
    spectrum = Spectrum.of_gram(torch.diag(torch.tensor([-1e-9, 4.0])))
    assert spectrum.singular_values.tolist() == [0.0, 2.0]


def test_effective_null_dimension_counts_what_lies_below_a_share_of_the_largest():
    weight = _linear_map([2.0] * 5 + [0.5] * 3 + [0.11, 0.09, 0.0, 0.0])
    spectrum = Spectrum.of_gram(accumulate_gram([weight], D))
    assert spectrum.effective_null_dimension() == 3  # 0.05 x 2.0 = 0.1
    assert spectrum.effective_null_dimension(0.06) == 4
    assert spectrum.effective_null_dimension(0.3) == 7
    assert spectrum.effective_null_dimension(1e-4) == 2


def test_reference_takes_the_largest_singular_values_below_the_threshold_first():
    weight = _linear_map([3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.04, 0.03, 0.02, 0.01])
    _, _, directions = torch.linalg.svd(weight, full_matrices=True)
    basis = reference_basis(weight, r=2)
    torch.testing.assert_close(_projector(basis), _projector(directions[8:10].T), atol=1e-4, rtol=0)
    basis = reference_basis(weight, r=3, threshold=0.35)
    torch.testing.assert_close(_projector(basis), _projector(directions[5:8].T), atol=1e-4, rtol=0)


def test_reference_fills_up_with_random_unit_rows():
    weight = _linear_map([3.0] * 10 + [0.02, 0.01])
    basis, again = (reference_basis(weight, r=4, generator=_generator(seed)) for seed in (1, 2))
    torch.testing.assert_close(basis.norm(dim=0), torch.ones(4))
    torch.testing.assert_close(basis[:, :2], again[:, :2])
    assert not torch.allclose(basis[:, 2:], again[:, 2:], atol=0.1)
    torch.testing.assert_close((weight @ basis[:, :2]).norm(dim=0), torch.tensor([0.02, 0.01]), atol=1e-5, rtol=0)


def test_reference_counts_directions_beyond_the_rank_of_a_flat_map():
    weight = torch.eye(D)[:9]  # three directions have no singular value
    basis = reference_basis(weight, r=3)
    torch.testing.assert_close(_projector(basis), torch.diag(torch.tensor([0.0] * 9 + [1.0] * 3)).double())


def test_random_basis_is_orthonormal_and_repeatable():
    basis = random_basis(D, 5, _generator())
    torch.testing.assert_close(basis.T @ basis, torch.eye(5))
    assert torch.equal(basis, random_basis(D, 5, _generator()))
    assert not torch.allclose(_projector(basis), _projector(random_basis(D, 5, _generator(1))), atol=0.1)


@pytest.mark.parametrize(
    ("columns", "e_prob", "e_safe"),
    [
        ([10, 11], 1.0, 0.0),  # the two largest singular values
        ([0, 1], 0.0, 1.0),  # the two smallest
        ([5, 6], 0.0, 0.0),  # neither
        ([0, 11], 0.5, 0.5),
    ],
)
def test_energy_shares_of_hand_made_subspaces(columns, e_prob, e_safe):
    spectrum = Spectrum.of_gram(torch.diag(torch.arange(1.0, D + 1)))  # the singular value grows with the channel
    shares = energy_shares(torch.eye(D)[:, columns], spectrum)
    assert shares == pytest.approx({"e_prob": e_prob, "e_safe": e_safe})


def test_energy_shares_weigh_columns_by_their_energy_and_take_any_r():
    spectrum = Spectrum.of_gram(torch.diag(torch.arange(1.0, D + 1)))
    basis = torch.zeros(D, 2)
    basis[0, 0], basis[11, 1] = 3.0, 1.0  # energy 9 in the smallest, 1 in the largest direction
    assert energy_shares(basis, spectrum, r=1) == pytest.approx({"e_prob": 0.1, "e_safe": 0.9})
    assert energy_shares(basis, spectrum, r=D) == pytest.approx({"e_prob": 1.0, "e_safe": 1.0})


def test_energy_shares_of_random_directions_are_r_over_d():
    spectrum = Spectrum.of_gram(torch.diag(torch.arange(1.0, 257)))
    shares = energy_shares(torch.randn(256, 400, generator=_generator()), spectrum, r=64)
    assert shares["e_prob"] == pytest.approx(0.25, abs=0.01)
    assert shares["e_safe"] == pytest.approx(0.25, abs=0.01)


class _Mixer(nn.Module):
    """A small non-linear map over 3 tokens of width D in which tokens see each other; float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = _generator(7)
        self.weight = nn.Parameter(torch.randn(D, D, generator=generator, dtype=torch.float64) / math.sqrt(D))
        self.mix = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("st,btd->bsd", self.mix, tokens) @ self.weight.T)


def _exact_gram(write: nn.Module, tokens: Tensor) -> Tensor:
    """Σ_i J_iᵀJ_i with J_i the Jacobian of all outputs with respect to token i."""
    jacobian = torch.autograd.functional.jacobian(write, tokens)  # (B, S, D, B, T, D)
    rows = jacobian.flatten(0, 2).flatten(1, 2)  # (outputs, B*T, D)
    return torch.einsum("oti,otj->ij", rows, rows)


def test_jacobian_gram_is_the_exact_one_up_to_probe_noise():
    write = _Mixer()
    tokens = torch.randn(2, 3, D, generator=_generator(1), dtype=torch.float64)
    exact = _exact_gram(write, tokens)
    errors = {}
    for probes in (40, 4000):
        estimate = jacobian_gram(write, tokens, probes=probes, generator=_generator(2))
        torch.testing.assert_close(estimate, estimate.T)
        errors[probes] = float((estimate - exact).norm() / exact.norm())
    assert errors[4000] < 0.05  # the error falls with the square root of the number of probes
    assert errors[4000] < 0.3 * errors[40]


def test_jacobian_gram_of_a_linear_write_is_its_weights_gram():
    weight = torch.randn(D, D, generator=_generator(), dtype=torch.float64)
    tokens = torch.randn(4, 5, D, generator=_generator(1), dtype=torch.float64)
    estimate = jacobian_gram(lambda x: x @ weight.T, tokens, probes=500, generator=_generator(2)) / 20
    exact = weight.T @ weight
    assert (estimate - exact).norm() / exact.norm() < 0.05


def test_jacobian_gram_works_under_no_grad_and_leaves_no_gradients():
    write = _Mixer()
    with torch.no_grad():
        gram = jacobian_gram(write, torch.randn(1, 3, D, dtype=torch.float64))
    assert gram.diagonal().min() > 0
    assert write.weight.grad is None


def _ignoring(ignored: Tensor) -> nn.Module:
    """A non-linear map that does not depend on the subspace of the orthonormal columns ``ignored``."""
    weight = torch.randn(D, D, generator=_generator(3)) @ (torch.eye(D) - ignored @ ignored.T)
    return lambda tokens: torch.tanh(tokens @ weight.T)


def test_leakage_is_zero_for_an_ignored_subspace_and_grows_with_the_perturbation_elsewhere():
    ignored = random_basis(D, 4, _generator())
    write, tokens = _ignoring(ignored), torch.randn(3, 10, D, generator=_generator(1))
    assert leakage(write, tokens, ignored, generator=_generator(2)) < 1e-5
    seen = torch.linalg.svd(ignored, full_matrices=True).U[:, 4:]
    small, large = (leakage(write, tokens, seen, size, generator=_generator(2)) for size in (0.1, 0.3))
    assert 0.01 < small < large


def test_leakage_of_a_linear_write_is_the_relative_size_itself():
    tokens = torch.randn(3, 10, D, generator=_generator(1))
    measured = leakage(lambda x: 5 * x, tokens, random_basis(D, 4, _generator()), relative_size=0.25)
    assert measured == pytest.approx(0.25, abs=1e-5)


def test_leakage_leaves_prefix_tokens_alone():
    tokens = torch.randn(2, 6, D, generator=_generator(1))
    inputs = []

    def write(x: Tensor) -> Tensor:
        inputs.append(x)
        return x

    leakage(write, tokens, random_basis(D, 4, _generator()), num_prefix_tokens=2)
    before, after = inputs
    assert torch.equal(before[:, :2], after[:, :2])
    moved = (after - before)[:, 2:].norm(dim=-1) / before[:, 2:].norm(dim=-1)
    torch.testing.assert_close(moved, torch.full((2, 4), 0.3))
