"""The local outlier factor against scikit-learn's, and on points whose factor is written out."""

import re

import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor

from singer_hf.artifacts.local_outlier_factor import local_outlier_factor


def of_sklearn(tokens: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    scores = [
        -LocalOutlierFactor(num_neighbors).fit(image.double().numpy()).negative_outlier_factor_ for image in tokens
    ]
    return torch.stack([torch.from_numpy(score) for score in scores]).float()


@pytest.mark.parametrize(("number", "width", "neighbors"), [(60, 8, 30), (196, 64, 30), (64, 192, 5), (40, 16, 1)])
def test_the_factor_is_that_of_scikit_learn(number, width, neighbors):
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randn(3, number, width, generator=generator)
    tokens[:, ::9] *= 20
    tokens[1] += 50.0
    torch.testing.assert_close(
        local_outlier_factor(tokens, neighbors), of_sklearn(tokens, neighbors), rtol=1e-4, atol=1e-4
    )


def test_points_on_a_line_by_hand():
    # k = 1. Nearest: 0 -> 1, 1 -> 0 (the first of two), 2 -> 1, 10 -> 2; distances to them 1, 1, 1, 8.
    # Reachability max(d, k-distance of the neighbour): 1, 1, 1, 8. Densities 1, 1, 1, 1/8; the factor of 10 is 8.
    tokens = torch.tensor([0.0, 1.0, 2.0, 10.0])[None, :, None]
    torch.testing.assert_close(local_outlier_factor(tokens, 1), torch.tensor([[1.0, 1.0, 1.0, 8.0]]))


def test_all_other_tokens_are_neighbours_at_most():
    tokens = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(local_outlier_factor(tokens, 30), local_outlier_factor(tokens, 15))


def test_the_scale_of_the_tokens_does_not_matter():
    tokens = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(local_outlier_factor(1000 * tokens, 5), local_outlier_factor(tokens, 5))


def test_equal_tokens_are_no_outliers():
    torch.testing.assert_close(local_outlier_factor(torch.full((1, 20, 3), 7.0)), torch.ones(1, 20))


@pytest.mark.parametrize(
    ("shape", "neighbors", "message"),
    [
        ((1, 5, 2), 0, "`num_neighbors` must be at least 1, got 0"),
        ((1, 1, 2), 5, "`tokens` must be at least 2 per image, got 1; use larger images"),
    ],
)
def test_what_has_no_neighbours_is_refused(shape, neighbors, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        local_outlier_factor(torch.zeros(shape), neighbors)
