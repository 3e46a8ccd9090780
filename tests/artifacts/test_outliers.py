import numpy as np
import pytest
import torch

from singer_hf.artifacts.outliers import (
    OutlierRule,
    norm_quantiles,
    norm_statistics,
    outlier_ratio,
    sigma_outliers,
    token_norms,
)


def test_the_rule_is_median_plus_k_mad_within_the_image():
    norms = torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0], [10.0, 10.0, 10.0, 10.0, 19.0]])
    thresholds, medians = OutlierRule(mad_factor=10.0, mad_floor=0.1).thresholds(norms)
    assert medians.flatten().tolist() == [3.0, 10.0]
    assert thresholds.flatten().tolist() == [13.0, 20.0]  # MAD 1; MAD 0, replaced by the floor 0.1 x 10
    assert OutlierRule().mask(norms).sum(1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mad_factor": 0}, "`mad_factor` must be greater than 0, got 0"),
        ({"mad_floor": -1}, "`mad_floor` must be at least 0, got -1"),
        ({"absolute": 0.0}, "`absolute` must be greater than 0 or None, got 0.0"),
    ],
)
def test_a_rule_out_of_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        OutlierRule(**values)


def test_outlier_ratio_is_the_99th_percentile_over_the_median():
    # 101 norms 1..101: median 51, 99th percentile 100.
    tokens = torch.arange(1.0, 102.0).view(1, -1, 1) * torch.tensor([0.6, 0.8])
    assert outlier_ratio(token_norms(tokens)).item() == pytest.approx(100 / 51)


def test_outlier_ratio_is_the_mean_over_images_and_one_without_outliers():
    plain, spiked = torch.full((1, 101), 2.0), torch.full((1, 101), 2.0)
    spiked[0, :2] *= 9
    assert outlier_ratio(plain).item() == pytest.approx(1)
    assert outlier_ratio(torch.cat([plain, spiked])).item() == pytest.approx((1 + 9) / 2)
    assert outlier_ratio(torch.zeros(1, 4)).item() == 0  # no division by zero


def test_sigma_outliers_are_counted_per_image_and_averaged():
    # 99 norms of 1 and one of 11: mean 1.1, deviation sqrt(0.99), so the long one is 9.95 deviations above.
    plain, one = torch.ones(1, 100), torch.ones(1, 100)
    one[0, 7] = 11
    assert sigma_outliers(plain).item() == 0
    assert sigma_outliers(torch.cat([plain, one, one, plain])).item() == 0.5
    assert sigma_outliers(one, factor=9.9).item() == 1
    assert sigma_outliers(one, factor=9.95).item() == 0


def test_a_seventeenth_of_the_patches_hides_itself_from_sigma_outliers():
    norms = torch.ones(1, 170)
    norms[0, :9] = 100
    assert sigma_outliers(norms).item() == 9
    norms[0, :11] = 100
    assert sigma_outliers(norms).item() == 0


def test_norms_of_half_precision_are_taken_in_float32():
    tokens = (200 * torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))).half()
    assert torch.equal(token_norms(tokens), token_norms(tokens.float()))


@pytest.mark.parametrize("level", [0.05, 0.5, 0.97, 0.999, 1.0])
def test_a_quantile_is_a_norm_of_the_set_and_exact(level):
    norms = torch.from_numpy(np.random.default_rng(0).lognormal(2, 1.5, (50, 101)).astype(np.float32))
    (found,) = norm_quantiles(norms, [level])
    expected = norms.flatten().sort().values[int(np.ceil(level * (norms.numel() - 1)))]
    assert found == expected


def test_norm_statistics_of_hand_made_norms():
    norms = torch.full((2, 50), 2.0)
    norms[0, :3] = 20.0
    assert norm_statistics(norms) == {
        "median": 2.0,
        "p99_over_median": pytest.approx((10 + 1) / 2),
        "max_over_median": 10.0,
        "share": pytest.approx(0.03),
    }
