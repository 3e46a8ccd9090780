import pytest
import torch
from torch import nn
from torch.nn import functional as F

from singer_hf.artifacts.planting import fit_texture_probe, plant_artifacts, random_direction, reserve_unit
from singer_hf.artifacts.texture import patch_log_variance, patch_variance


def make_mlp(width=8, hidden=17):
    torch.manual_seed(0)
    return nn.Linear(width, hidden), nn.Linear(hidden, width)


def test_a_reserved_unit_adds_nothing_and_stays_zero_through_training():
    mlp_in, mlp_out = make_mlp()
    reserve_unit(mlp_in, mlp_out)
    optimizer = torch.optim.AdamW([*mlp_in.parameters(), *mlp_out.parameters()], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        mlp_out(F.gelu(mlp_in(torch.randn(5, 8)))).square().mean().backward()
        optimizer.step()
    assert not mlp_in.weight[-1].any()
    assert not mlp_out.weight[:, -1].any()
    assert mlp_in.bias[-1] == 0


def test_patch_log_variance_is_the_log_variance_of_each_patch_in_row_order():
    images = torch.zeros(1, 3, 4, 6)
    images[:, :, 0, 2] = 4.0  # second patch of the first row: one pixel of four is 4 -> variance 16 * (1/4 - 1/16) = 3
    texture = patch_log_variance(images, (2, 2))
    assert texture.shape == (1, 6)
    torch.testing.assert_close(texture[0, 1], torch.tensor(3.0).log())
    torch.testing.assert_close(texture[0, 2], torch.tensor(1e-8).log())


def test_patch_log_variance_refuses_images_that_do_not_divide():
    with pytest.raises(ValueError, match="multiples of the patch size 8 x 8, got 64 x 60; resize the images first"):
        patch_log_variance(torch.zeros(1, 3, 64, 60), (8, 8))


def test_the_probe_finds_the_channel_that_holds_the_texture():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(10_000, 8, generator=generator)
    weight, bias = fit_texture_probe(tokens, -2 * tokens[:, 3], share=0.1, gain=2.0)
    assert F.cosine_similarity(weight, torch.eye(8)[3], dim=0) > 0.99
    scores = tokens @ weight + bias
    assert (scores > 0).float().mean().item() == pytest.approx(0.1, abs=1e-3)
    assert scores[scores > 0].median().item() == pytest.approx(2.0, rel=0.02)


def test_the_probe_refuses_tokens_without_information():
    with pytest.raises(ValueError, match="`tokens` must predict the texture"):
        fit_texture_probe(torch.ones(100, 4), torch.randn(100))


def test_the_probe_refuses_textures_of_other_tokens():
    with pytest.raises(ValueError, match=r"one value per token, got \(9,\) for tokens \(10, 4\)"):
        fit_texture_probe(torch.ones(10, 4), torch.ones(9))


def test_a_random_direction_has_the_length_and_survives_centring():
    direction = random_direction(16, 5.0, torch.Generator().manual_seed(0))
    assert direction.norm().item() == pytest.approx(5.0, rel=1e-6)
    assert direction.sum().item() == pytest.approx(0.0, abs=1e-5)


def test_planting_adds_the_activated_score_times_the_direction_and_changes_nothing_else():
    mlp_in, mlp_out = make_mlp()
    reserve_unit(mlp_in, mlp_out)
    tokens = torch.randn(2, 5, 8)
    before = mlp_out(F.gelu(mlp_in(tokens)))
    weight, direction = torch.randn(8), random_direction(8, 7.0)
    plant_artifacts(mlp_in, mlp_out, -1, weight, 0.5, direction)
    planted = mlp_out(F.gelu(mlp_in(tokens))) - before
    torch.testing.assert_close(planted, F.gelu(tokens @ weight + 0.5)[..., None] * direction, atol=1e-5, rtol=1e-5)


def test_a_unit_in_use_is_not_overwritten():
    mlp_in, mlp_out = make_mlp()
    with pytest.raises(ValueError, match="`unit` must be an unused hidden unit, got 16, which is in use"):
        plant_artifacts(mlp_in, mlp_out, -1, torch.zeros(8), 0.0, torch.zeros(8))


def test_layers_of_different_mlps_are_refused():
    with pytest.raises(ValueError, match="two layers of one ungated MLP, got 8 -> 17 and 16 -> 8"):
        reserve_unit(nn.Linear(8, 17), nn.Linear(16, 8))


def test_a_weight_of_the_wrong_width_is_refused_with_both_shapes():
    mlp_in, mlp_out = make_mlp()
    reserve_unit(mlp_in, mlp_out)
    with pytest.raises(ValueError, match=r"must have shape \(8,\), got \(9,\) and \(8,\)"):
        plant_artifacts(mlp_in, mlp_out, -1, torch.zeros(9), 0.0, torch.zeros(8))


def test_the_variance_ignores_pixels_that_fill_no_patch():
    images = torch.randn(1, 3, 19, 25, generator=torch.Generator().manual_seed(0))
    patches = images[:, :, :16, :24].unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    torch.testing.assert_close(patch_variance(images, (8, 8)), patches.var(-1, correction=0).mean(1).flatten(1))
