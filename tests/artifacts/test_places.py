"""Metrics at artifact places, against values that are known or computed in another way."""

import math

import pytest
import torch
from torch.nn import functional as F

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.artifacts.places import (
    alignment,
    artifact_places,
    auroc,
    channel_roughness,
    direction_auroc,
    mean_by_place,
    place_metrics,
    resize_places,
)


def random_tokens(images=8, patches=16, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(images, patches, width, generator=generator)
    return tokens, torch.rand(images, patches, generator=generator) < 0.25


def test_an_image_full_of_outliers_does_not_hide_them():
    norms = torch.ones(4, 6)
    norms[0, :5] = 100.0
    assert artifact_places(norms).equal(norms > 50)
    assert not OutlierRule().mask(norms)[0].any()
    assert not artifact_places(norms, OutlierRule(mad_factor=2000)).any()


def test_places_on_another_grid_are_the_patches_that_overlap_one():
    places = torch.zeros(1, 4, 4, dtype=torch.bool)
    places[0, 1, 2] = True
    coarse = resize_places(places.flatten(1), (4, 4), (2, 2))
    assert coarse.tolist() == [[False, True, False, False]]
    assert resize_places(coarse, (2, 2), (4, 4)).view(4, 4).nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert resize_places(coarse, (2, 2), (2, 2)) is coarse


def test_means_at_the_places_and_elsewhere():
    values, places = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[True, False], [True, False]])
    assert mean_by_place(values, places) == (2.0, 4.0)
    assert mean_by_place(values, torch.zeros_like(places)) == (None, 3.0)


def test_alignment_is_the_mean_over_all_pairs():
    tokens, places = random_tokens()
    cosines = F.normalize(tokens.flatten(0, 1).double(), dim=-1)
    cosines, mask = cosines @ cosines.T, places.flatten()
    within = cosines[mask][:, mask]
    count = len(within)
    artifact, other = alignment(100 * tokens, places)
    assert artifact == pytest.approx(float(within.sum() - count) / (count * (count - 1)), abs=1e-6)
    assert other == pytest.approx(float(cosines[mask][:, ~mask].mean()), abs=1e-6)
    assert alignment(tokens, torch.zeros_like(places)) == (None, None)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    scores, places = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([True, False, True, False])
    assert auroc(scores, places) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert auroc(scores, torch.ones(4, dtype=torch.bool)) is None
    assert auroc(scores, torch.zeros(4, dtype=torch.bool)) is None


def test_a_direction_is_found_without_a_norm():
    tokens, places = random_tokens(images=40)
    lengths = torch.rand(40, 16, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    assert direction_auroc(tokens, places) == pytest.approx(0.5, abs=0.1)
    moved = lengths * F.normalize(tokens + 8.0 * places.unsqueeze(-1) * F.one_hot(torch.tensor(3), 12), dim=-1)
    metrics = place_metrics(moved, places)
    assert metrics["auroc_direction"] > 0.99
    assert metrics["auroc_norm"] == pytest.approx(0.5, abs=0.1)
    assert metrics["artifact_alignment"] > 0.7 > 0.1 > abs(metrics["other_alignment"])


def test_the_direction_is_scored_on_other_images_than_it_is_fitted_on():
    tokens, places = random_tokens(images=2, patches=8, width=200)
    assert direction_auroc(tokens, places) < 0.95  # fitted on the same images it would be 1
    places[0] = False
    assert direction_auroc(tokens, places) is None


@pytest.mark.parametrize("width", [15, 16])
def test_roughness_is_the_distance_to_the_low_pass(width):
    tokens = random_tokens(width=width)[0].double()
    frequencies = torch.fft.fftfreq(width, dtype=torch.float64)
    low = torch.fft.ifft(torch.fft.fft(tokens) * torch.exp(-0.5 * (frequencies / 0.125) ** 2)).real
    expected = (tokens - low).norm(dim=-1) / tokens.norm(dim=-1)
    assert torch.allclose(channel_roughness(tokens).double(), expected, atol=1e-5)
    assert torch.allclose(channel_roughness(1000 * tokens), channel_roughness(tokens))


def test_roughness_of_equal_and_of_alternating_channels():
    alternating = torch.tensor([1.0, -1.0]).repeat(4)
    scores = channel_roughness(torch.stack([torch.ones(8), alternating, torch.zeros(8)]))
    assert scores.tolist() == pytest.approx([0.0, 1 - math.exp(-8), 0.0], abs=1e-6)
