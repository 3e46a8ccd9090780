"""Targets without a unit of length: LayerNorm of tokens, statistics by channel, distances."""

import pytest
import torch
from distillers import make, small_student
from zoo import images, tiny_vit

from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.losses import kd_loss, length_unit, normalize_tokens, outlier_loss
from singer_hf.distillation.target_norm import ChannelNorm, ChannelTokenNorm
from singer_hf.training.checkpoint import load_distilled, save_distilled
from singer_hf.vit.running_statistics import NUM_SETTLING_BATCHES


def test_a_normalised_token_has_mean_0_and_variance_1():
    # Mean 2, deviation sqrt(((-1)^2 + 0 + 1^2) / 3).
    deviation = (2 / 3) ** 0.5
    expected = torch.tensor([[[-1, 0, 1]]]) / deviation
    torch.testing.assert_close(normalize_tokens(torch.tensor([[[1.0, 2.0, 3.0]]])), expected)
    torch.testing.assert_close(normalize_tokens(torch.tensor([[[1e-3, 2e-3, 3e-3]]])), expected)


def test_a_token_of_zeros_stays_finite():
    tokens = torch.zeros(1, 1, 4, requires_grad=True)
    normalize_tokens(tokens).sum().backward()
    assert tokens.grad.isfinite().all()


def test_cosine_distance():
    refined = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    projected = torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])
    assert kd_loss(refined, projected, "cosine").item() == pytest.approx(((1 - 0.6) + (1 + 1)) / 2)


def test_smooth_l1_distance():
    # 0.5 x^2 up to 1, |x| - 0.5 beyond.
    refined, projected = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.5, 3.0]]])
    assert kd_loss(refined, projected, "smooth_l1").item() == pytest.approx((0.125 + 2.5) / 2)


def test_the_relative_outlier_loss_counts_in_median_norms():
    # Norms 1, 2, 3, 4, 10: median 3. Above the .5 quantile: excesses 1 and 7, in units of 3.
    patches = torch.tensor([1.0, 2, 3, 4, 10]).view(1, 5, 1) * torch.tensor([0.6, 0.8])
    assert length_unit(patches).item() == pytest.approx(3)
    loss = outlier_loss(patches, 0.5, length_unit(patches))
    assert loss.item() == pytest.approx(((1 / 3) ** 2 + (7 / 3) ** 2) / 2)


def test_the_relative_outlier_loss_of_a_batch_is_the_mean_of_its_parts():
    patches = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 5, 9]).view(
        4, 1, 1
    )
    whole, *halves = (outlier_loss(part, 0.9, length_unit(part)) for part in (patches, patches[:2], patches[2:]))
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_the_relative_outlier_loss_of_tokens_of_zeros_is_0():
    patches = torch.zeros(1, 4, 8)
    assert outlier_loss(patches, 0.5, length_unit(patches)) == 0


def test_channel_statistics_are_those_of_the_inlier_patches():
    norm = ChannelNorm(2, 1)
    patches = torch.tensor([[[3.0, 4.0], [4.0, 3.0], [5.0, 0.0], [0.0, 5.0], [300.0, -400.0]]])
    norm.observe(torch.cat([torch.tensor([[[7.0, -7.0]]]), patches], dim=1))
    assert norm.mean.tolist() == [[7, -7], [3, 3]]
    assert norm.variance.tolist() == [[0, 0], [(0 + 1 + 4 + 9) / 4, (1 + 0 + 9 + 4) / 4]]
    torch.testing.assert_close(norm(patches[:, [0, 0]])[0, 1], torch.tensor([0.0, 1.0]) / 3.5**0.5)


def test_channel_statistics_over_batches_are_those_of_all_batches_together():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 10, 3, generator=generator) * (k + 1) + k for k in range(3)]
    norm = ChannelNorm(3, 0)
    norm.rule = type(norm.rule)(mad_factor=1e6)
    for batch in batches:
        norm.observe(batch)
    together = torch.cat(batches).flatten(0, 1)
    torch.testing.assert_close(norm.mean[0], together.mean(dim=0))
    torch.testing.assert_close(norm.variance[0], together.var(dim=0, correction=0))


def test_channel_statistics_settle():
    norm = ChannelNorm(3, 1)
    for _ in range(NUM_SETTLING_BATCHES):
        norm.observe(torch.randn(2, 5, 3))
    settled = norm.mean.clone()
    norm.observe(torch.randn(2, 5, 3) + 100)
    assert torch.equal(norm.mean, settled)
    norm.settle()
    norm.observe(torch.full((2, 5, 3), torch.nan))
    assert torch.equal(norm.mean, settled)


def test_a_constant_channel_is_not_amplified():
    tokens = torch.randn(8, 10, 4, generator=torch.Generator().manual_seed(0))
    tokens[..., 2] = 5 + 1e-6 * tokens[..., 2]
    norm = ChannelNorm(4, 0)
    norm.observe(tokens)
    assert norm(tokens)[..., 2].abs().max() < 1e-3


def test_channels_are_scaled_and_tokens_normalised_behind():
    tokens = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 5, 10])
    both, channel = ChannelTokenNorm(4, 0), ChannelNorm(4, 0)
    both.observe(tokens)
    channel.observe(tokens)
    expected = normalize_tokens(tokens / channel.variance[0].sqrt())
    torch.testing.assert_close(both(tokens), expected)
    torch.testing.assert_close(both(tokens).square().mean(dim=-1), torch.ones(2, 5))


@pytest.mark.parametrize("target_norm", ["none", "token", "channel", "channel_token"])
def test_the_loss_compares_the_normalised_targets(target_norm):
    distiller = FeatureDistiller(small_student(), tiny_vit(), target_norm=target_norm).train()
    pixel_values = images()
    loss = distiller(pixel_values).kd_loss
    raw = distiller.teacher_features(pixel_values).outputs
    student = distiller.student_extractor(pixel_values)
    errors = [
        (distiller.target_norms[str(pair.teacher)](raw[pair.teacher]) - distiller.project(pair, student))
        .square()
        .mean()
        for pair in distiller.pairs
    ]
    torch.testing.assert_close(loss, sum(errors) / len(errors))


def test_statistics_are_observed_in_training_only():
    distiller = make(config={"gate": "outlier"}, target_norm="channel")
    distiller.eval()(images())
    assert all(norm.num_batches == 0 for norm in distiller.target_norms.values())
    distiller.train()(images())
    assert all(norm.num_batches == 1 for norm in distiller.target_norms.values())
    assert all(layer.singer_gate["default"].num_batches == 1 for layer in distiller.singer_layers.values())


def test_statistics_and_gates_come_back_from_a_checkpoint(tmp_path):
    distiller = make(config={"gate": "outlier"}, target_norm="channel")
    for seed in range(3):
        distiller(images(seed=seed))
    expected = distiller.eval()(images(seed=9))
    save_distilled(distiller, tmp_path)
    restored = make(config={"gate": "outlier"}, target_norm="channel")
    load_distilled(restored, tmp_path)
    assert {name: values.tolist() for name, values in restored.target_norms.state_dict().items()} == {
        name: values.tolist() for name, values in distiller.target_norms.state_dict().items()
    }
    actual = restored.eval()(images(seed=9))
    assert [v.item() for v in actual.values()] == [v.item() for v in expected.values()]


def test_the_papers_targets_have_no_statistics_to_save(tmp_path):
    save_distilled(make(), tmp_path)
    assert not (tmp_path / "target_norms").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kd_loss", "l2", "`kd_loss` must be one of 'mse', 'cosine', 'smooth_l1', got 'l2'"),
        (
            "target_norm",
            "layer",
            "`target_norm` must be one of 'none', 'token', 'channel', 'channel_token', got 'layer'",
        ),
        ("outlier_loss", "median", "`outlier_loss` must be one of 'absolute', 'relative', 'neighbors', got 'median'"),
    ],
)
def test_unknown_names_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        make(**{name: value})
