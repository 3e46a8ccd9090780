"""The three losses against values worked out by hand, and what they promise about precision, gradients and graphs."""

import math

import pytest
import torch
from torch import Tensor

from singer_hf.artifacts.gram import gram_matrix
from singer_hf.distillation.losses import check_singer_settings, check_weights, info_loss, kd_loss, outlier_loss

SETTINGS = {
    "outlier_weight": 0.01,
    "info_weight": 1.0,
    "outlier_quantile": 0.97,
    "info_loss": "gram",
    "outlier_loss": "absolute",
}


def tokens_of_norms(*norms: float) -> Tensor:
    """One image (1, N, 2) whose tokens have the given norms, each a multiple of (0.6, 0.8)."""
    return torch.tensor(norms).view(1, -1, 1) * torch.tensor([0.6, 0.8])


def test_gram_matrix_holds_the_cosines_of_all_pairs_of_patches():
    tokens = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]])
    expected = torch.tensor([[[1.0, 0.6, 0.8], [0.6, 1.0, 0.0], [0.8, 0.0, 1.0]]])
    torch.testing.assert_close(gram_matrix(tokens), expected)


def test_gram_matrix_does_not_see_the_norms():
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([1.0, 100.0, 0.01, 3.0, 7.0]).view(1, 5, 1)
    torch.testing.assert_close(gram_matrix(tokens * scales), gram_matrix(tokens))


def test_kd_loss_is_the_mean_squared_error():
    refined = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    projected = torch.tensor([[[1.0, 0.0], [0.0, 4.0]]])
    assert kd_loss(refined, projected).item() == pytest.approx((0 + 4 + 9 + 0) / 4)


def test_kd_loss_does_not_broadcast():
    with pytest.raises(ValueError, match=r"refined tokens \(1, 4, 2\) and projected \(1, 1, 2\) must match"):
        kd_loss(torch.ones(1, 4, 2), torch.ones(1, 1, 2))


def test_outlier_loss_is_the_mean_squared_excess_of_the_norms_above_the_quantile():
    # The median of 1, 2, 3, 10 is 2.5; two norms lie above it, by 0.5 and 7.5.
    loss = outlier_loss(tokens_of_norms(1, 2, 3, 10), quantile=0.5)
    assert loss.item() == pytest.approx((0.5**2 + 7.5**2) / 2)


def test_outlier_loss_takes_each_images_own_quantile_and_the_mean_over_all_patches_above():
    # Image 1: median 3 of 1, 2, 3, 4, 5 (excesses 1, 2). Image 2: median 1 of 1, 1, 1, 1, 7 (excess 6).
    tokens = torch.cat([tokens_of_norms(1, 2, 3, 4, 5), tokens_of_norms(1, 1, 1, 1, 7)])
    assert outlier_loss(tokens, quantile=0.5).item() == pytest.approx((1 + 4 + 36) / 3)


@pytest.mark.parametrize("quantile", [0.25, 0.9, 0.97])
def test_outlier_loss_equals_the_loop_over_images_and_patches(quantile):
    tokens = torch.randn(3, 17, 6, generator=torch.Generator().manual_seed(1)) ** 3
    squares = []
    for image in tokens:
        norms = sorted(float(token.norm()) for token in image)
        position = quantile * (len(norms) - 1)
        low = math.floor(position)
        threshold = norms[low] + (position - low) * (norms[min(low + 1, len(norms) - 1)] - norms[low])
        squares += [(norm - threshold) ** 2 for norm in norms if norm > threshold]
    assert outlier_loss(tokens, quantile).item() == pytest.approx(sum(squares) / len(squares), rel=1e-4)


def test_no_gradient_flows_through_the_quantile_or_to_the_patches_below_it():
    tokens = tokens_of_norms(1, 2, 3, 10).requires_grad_()
    outlier_loss(tokens, quantile=0.5).backward()
    # d/dnorm = 2 excess / 2 patches, along the token's own direction.
    expected = torch.tensor([0.0, 0.0, 0.5, 7.5]).view(1, 4, 1) * torch.tensor([0.6, 0.8])
    torch.testing.assert_close(tokens.grad, expected)


@pytest.mark.parametrize("tokens", [torch.ones(2, 4, 3), torch.zeros(2, 4, 3)], ids=["equal norms", "zeros"])
def test_without_outliers_loss_and_gradient_are_zero_and_not_nan(tokens):
    tokens = tokens.clone().requires_grad_()
    loss = outlier_loss(tokens)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(tokens.grad, torch.zeros_like(tokens))


def test_info_loss_is_the_mean_squared_difference_of_the_gram_matrices():
    # Cosine 0 becomes cosine 1 in the two off-diagonal entries of four.
    refined, raw = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    assert info_loss(refined, raw).item() == pytest.approx(2 / 4)
    assert info_loss(5 * raw, raw).item() == pytest.approx(0, abs=1e-12)


def test_info_loss_leaves_out_the_prefix_tokens():
    prefix = torch.tensor([[[9.0, 9.0]]])
    refined, raw = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    tokens = torch.cat([prefix, refined], dim=1), torch.cat([-prefix, raw], dim=1)
    assert info_loss(*tokens, num_prefix_tokens=1).item() == pytest.approx(2 / 4)


def test_the_reference_kind_is_the_mean_squared_difference_of_all_tokens():
    refined, raw = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.zeros(1, 2, 2)
    assert info_loss(refined, raw, num_prefix_tokens=1, kind="reference").item() == (1 + 4 + 9 + 16) / 4


@pytest.mark.parametrize("zero_token", [0, 3])
def test_info_loss_of_a_zero_token_has_no_nan(zero_token):
    tokens = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    tokens[0, zero_token] = 0
    refined = tokens.clone().requires_grad_()
    loss = info_loss(refined, tokens)
    loss.backward()
    assert loss.isfinite()
    assert refined.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    """Norms of 1000 have squares of 1e6, more than float16 can hold."""
    generator = torch.Generator().manual_seed(0)
    first = (200 * torch.randn(2, 9, 24, generator=generator)).to(dtype)
    second = (200 * torch.randn(2, 9, 24, generator=generator)).to(dtype)
    for loss in (kd_loss, info_loss, lambda x, y: outlier_loss(x, 0.5)):
        value = loss(first, second)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(first.float(), second.float()))
        assert value.isfinite()


def test_losses_stay_in_float32_under_autocast():
    tokens = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [kd_loss(tokens, 2 * tokens), outlier_loss(tokens, 0.5)]
    assert [value.dtype for value in values] == [torch.float32] * 2
    assert torch.equal(values[0], kd_loss(tokens, 2 * tokens))


def test_losses_make_one_graph_without_waiting_for_the_device():
    """Boolean indexing, `.item()` and branches on values would break the graph."""

    def losses(refined: Tensor, raw: Tensor) -> Tensor:
        return kd_loss(refined, raw) + outlier_loss(refined, 0.9) + info_loss(refined, raw)

    refined, raw = torch.randn(2, 2, 9, 4, generator=torch.Generator().manual_seed(0)).unbind()
    plain, compiled = refined.clone().requires_grad_(), refined.clone().requires_grad_()
    value = torch.compile(losses, fullgraph=True, backend="eager")(compiled, raw)
    value.backward()
    losses(plain, raw).backward()
    torch.testing.assert_close(value, losses(plain, raw))
    torch.testing.assert_close(compiled.grad, plain.grad)


def test_losses_run_without_values():
    """On the meta device every question about a value raises."""
    tokens = torch.empty(2, 9, 4, device="meta")
    assert (kd_loss(tokens, tokens) + outlier_loss(tokens) + info_loss(tokens, tokens)).shape == ()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("outlier_weight", -0.1, "`outlier_weight` must be at least 0, got -0.1"),
        ("info_weight", math.nan, "`info_weight` must be at least 0, got nan"),
        ("outlier_quantile", 0, r"`outlier_quantile` must lie in \(0, 1\), got 0"),
        ("outlier_quantile", 1.0, r"`outlier_quantile` must lie in \(0, 1\), got 1.0"),
        ("outlier_quantile", 97, r"`outlier_quantile` must lie in \(0, 1\), got 97"),
        ("info_loss", "cka", "`info_loss` must be one of 'gram', 'reference', got 'cka'"),
    ],
)
def test_settings_out_of_range_are_refused(name, value, message):
    check_singer_settings(**SETTINGS)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_singer_settings(**{**SETTINGS, name: value})


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_weights_below_zero_are_refused(weight):
    check_weights(kd_weight=0.0, generation_weight=1.0)
    with pytest.raises(ValueError, match=f"^`kd_weight` must be at least 0, got {weight}$"):
        check_weights(kd_weight=weight)
