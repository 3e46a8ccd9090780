"""Clipped norms and neighbours' means, on tokens whose right answer is written out."""

import re

import pytest
import torch
import zoo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.clip_norm import ClipNorm
from singer_hf.baselines.cleanups.neighbor_mean import NeighborMean
from singer_hf.baselines.method_table import make_method
from singer_hf.vit.structure import view_vit


def line(*lengths: float, prefix: int = 1) -> Tensor:
    """Tokens (1, prefix + N, 2): prefix tokens (9, 9), then patches along (3, 4) / 5 of the given lengths."""
    patches = torch.tensor(lengths)[:, None] * torch.tensor([0.6, 0.8])
    return torch.cat([torch.full((prefix, 2), 9.0), patches])[None]


def square(*rows: tuple[float, ...]) -> Tensor:
    """Patches of one channel on a grid, (1, N, 1); no prefix."""
    return torch.tensor(rows, dtype=torch.float32).reshape(1, -1, 1)


def test_clip_norm_at_the_rule_keeps_the_direction():
    # Norms 1, 1, 1, 1, 10: median 1, MAD 0, threshold 1 + 10 * max(0, 0.1 * 1) = 2.
    refined = ClipNorm(1).refine(line(1, 1, 1, 1, 10))
    torch.testing.assert_close(refined, line(1, 1, 1, 1, 2))


def test_clip_norm_at_a_rule_of_ones_own():
    # Norms 1, 2, 3, 4, 20: median 3, deviations 2, 1, 0, 1, 17, MAD 1, threshold 3 + 4 * 1 = 7.
    refined = ClipNorm(1, rule=OutlierRule(mad_factor=4.0)).refine(line(1, 2, 3, 4, 20))
    torch.testing.assert_close(refined, line(1, 2, 3, 4, 7))


def test_clip_norm_at_the_quantile_of_the_image():
    # Norms 1, 1, 1, 1, 10 have their 0.9 quantile at rank 0.9 * 4 = 3.6: 1 + 0.6 * (10 - 1) = 6.4.
    refined = ClipNorm(1, quantile=0.9).refine(line(1, 1, 1, 1, 10))
    torch.testing.assert_close(refined, line(1, 1, 1, 1, 6.4))


def test_the_rule_holds_where_the_quantile_is_an_outlier_itself():
    tokens = line(1, 1, 1, 10, 10)
    assert torch.equal(ClipNorm(1, quantile=0.75).refine(tokens), tokens)  # the quantile is 10
    torch.testing.assert_close(ClipNorm(1).refine(tokens), line(1, 1, 1, 2, 2))


@pytest.mark.parametrize("name", ["clip_norm", "neighbor"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_prefix_tokens_and_inliers_are_bit_for_bit_those_that_came_in(name, dtype):
    tokens = torch.rand(2, 5 + 24, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    tokens[:, 0] = 1000.0
    tokens[0, 5 + 3] *= 100.0
    refiner = ClipNorm(5) if name == "clip_norm" else NeighborMean(5, (4, 6))
    before = tokens.clone()
    refined = refiner.refine(tokens)
    assert refined.dtype == dtype
    assert refined.shape == tokens.shape
    assert torch.equal(tokens, before)
    assert (refined != tokens).any(-1).nonzero().tolist() == [[0, 5 + 3]]


@pytest.mark.parametrize("refiner", [ClipNorm(1), ClipNorm(1, quantile=0.9), NeighborMean(1, (1, 5))])
def test_images_of_a_batch_do_not_see_each_other(refiner):
    short, long = line(1, 1, 1, 1, 10), line(50, 70, 60, 500, 40)
    refined = refiner.refine(torch.cat([short, long]))
    assert torch.equal(refined, torch.cat([refiner.refine(short), refiner.refine(long)]))


@pytest.mark.parametrize("refiner", [ClipNorm(1), ClipNorm(1, quantile=0.9), NeighborMean(1, (1, 5))])
def test_images_without_outliers_come_back_as_they_are(refiner):
    for tokens in (line(3, 3, 3, 3, 3), torch.zeros(1, 6, 2)):
        assert torch.equal(refiner.refine(tokens), tokens)


def test_neighbor_mean_in_the_middle_takes_all_eight():
    tokens = square((1, 2, 3), (4, 90, 5), (6, 7, 8))  # 36 / 8
    assert NeighborMean(0, (3, 3)).refine(tokens).flatten().tolist() == [1, 2, 3, 4, 4.5, 5, 6, 7, 8]


def test_neighbor_mean_in_a_corner_takes_the_three_there_are():
    tokens = square((1, 2, 3), (4, 5, 6), (7, 8, 90))  # (5 + 6 + 8) / 3
    torch.testing.assert_close(NeighborMean(0, (3, 3)).refine(tokens)[0, 8], torch.tensor([19 / 3]))


def test_neighbor_mean_leaves_other_outliers_out():
    tokens = square((1, 2, 3), (4, 90, 99), (6, 7, 8))
    refined = NeighborMean(0, (3, 3)).refine(tokens).flatten().tolist()
    assert refined[4] == pytest.approx((1 + 2 + 3 + 4 + 6 + 7 + 8) / 7)
    assert refined[5] == pytest.approx((2 + 3 + 7 + 8) / 4)


def test_neighbor_mean_inside_a_cluster_takes_the_nearest_ring_with_inliers():
    # A cluster of 3 x 3 in the top left corner: the corner itself has outliers for neighbours and for their
    # neighbours on the near sides; the nearest inliers lie 3 away, the middle's lie 2 away.
    rows = [
        [1.0, 2, 3, 4, 5, 6],
        [6.0, 5, 4, 3, 2, 1],
        [1.0, 1, 1, 2, 2, 2],
        [3.0, 4, 5, 6, 1, 2],
        [2.0, 2, 2, 2, 2, 2],
    ]
    for row in rows[:3]:
        row[:3] = [80.0, 90.0, 99.0]
    refined = NeighborMean(0, (5, 6)).refine(square(*rows)).reshape(5, 6)
    assert refined[0, 0] == pytest.approx((4 + 3 + 2 + 3 + 4 + 5 + 6) / 7)  # row 3 and column 3 up to each other
    assert refined[1, 1] == pytest.approx((4 + 3 + 2 + 3 + 4 + 5 + 6) / 7)
    assert refined[2, 2] == pytest.approx((3 + 2 + 6 + 5 + 4) / 5)
    assert refined[0, 2] == pytest.approx((4 + 3) / 2)


def batched_neighbor_mean(tokens: Tensor, inliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """The means with the weights (B, N, N) of the whole batch at once."""
    row, column = torch.arange(grid[0]).repeat_interleave(grid[1]), torch.arange(grid[1]).repeat(grid[0])
    distance = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    usable = inliers[:, None]
    weights = (usable & (distance == distance.where(usable, 99).amin(dim=-1, keepdim=True))).float()
    return weights @ tokens / weights.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize(("grid", "width"), [((4, 6), 16), ((16, 16), 192), ((9, 12), 768), ((14, 14), 1024)])
def test_neighbor_mean_has_the_digits_of_the_whole_batch_in_one_product(grid, width):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, grid[0] * grid[1], width, generator=generator)
    tokens[torch.rand(tokens.shape[:2], generator=generator) < 0.2] *= 50
    norms = tokens.norm(dim=-1)
    outliers = norms > OutlierRule().thresholds(norms)[0]
    assert outliers.any(dim=1).all()
    expected = torch.where(outliers[..., None], batched_neighbor_mean(tokens, ~outliers, grid), tokens)
    assert torch.equal(NeighborMean(0, grid).refine(tokens), expected)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.size = max(self.size, *(t.numel() * t.itemsize for t in tree_leaves(made) if isinstance(t, Tensor)), 0)
        return made


def test_neighbor_mean_needs_no_weights_of_a_whole_batch():
    """37 x 37 patches: 15 MB for one image, where the weights of 8 images take 120 MB."""
    tokens = torch.randn(8, 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    with LargestTensor() as largest:
        NeighborMean(0, (37, 37)).refine(tokens)
    assert 0 < largest.size <= (37 * 37) ** 2 * 8


def test_neighbor_mean_by_a_quantile():
    refined = NeighborMean(1, (1, 5), quantile=0.9).refine(line(1, 1, 1, 3, 10))
    torch.testing.assert_close(refined, line(1, 1, 1, 3, 3))


def test_neighbor_mean_keeps_float32_under_autocast():
    tokens = torch.rand(1, 9, 4, generator=torch.Generator().manual_seed(0))
    tokens[0, 4] *= 100
    expected = NeighborMean(0, (3, 3)).refine(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(NeighborMean(0, (3, 3)).refine(tokens), expected)


def test_neighbor_mean_needs_the_grid_of_the_tokens():
    with pytest.raises(ValueError, match="do not fill") as error:
        NeighborMean(1, (3, 3)).refine(torch.zeros(1, 9, 2))
    assert str(error.value) == (
        "8 patch tokens do not fill a grid of 3 x 3; give the `grid` of the images that are refined"
    )


def test_one_threshold_at_most_is_given_and_in_range():
    with pytest.raises(ValueError, match="both") as error:
        ClipNorm(1, quantile=0.9, rule=OutlierRule())
    assert str(error.value) == (
        "`quantile` and `rule` must not both be given, got 0.9 and OutlierRule(mad_factor=10.0, mad_floor=0.1, "
        "absolute=None); drop one"
    )
    for quantile in (0, 1, -0.5, 97):
        with pytest.raises(ValueError, match="must lie in") as error:
            NeighborMean(1, (2, 2), quantile=quantile)
        assert str(error.value) == (
            f"`quantile` must lie in (0, 1), got {quantile!r}; `rule` needs no share of outliers"
        )


def test_a_batchs_threshold_sees_outliers_that_crowd_one_image():
    # In an image with norms 1, 1, 10, 10, 10 the median is 10: no token is above twice that.
    few, many = line(1, 1, 1, 1, 10), line(1, 1, 10, 10, 10)
    tokens = torch.cat([few, few, many])
    assert torch.equal(ClipNorm(1).refine(tokens)[2:], many)
    # Over the 15 norms: median 1, MAD 0, threshold 1 + 10 * 0.1 * 1 = 2.
    expected = torch.cat([line(1, 1, 1, 1, 2), line(1, 1, 1, 1, 2), line(1, 1, 2, 2, 2)])
    torch.testing.assert_close(ClipNorm(1, scope="batch").refine(tokens), expected)


def test_neighbor_mean_by_the_batchs_threshold():
    tokens = torch.cat([line(1, 1, 1, 1, 1), line(1, 3, 90, 80, 2), line(1, 1, 1, 1, 1)])
    # 15 norms: median 1, MAD 0, threshold 2; 3 is an outlier too, and 2 is none.
    refined = NeighborMean(1, (1, 5), scope="batch").refine(tokens)
    torch.testing.assert_close(refined[1:2], line(1, 1, 1.5, 2, 2))


def test_an_image_without_inliers_stays_as_it_is():
    tokens = torch.cat([line(1, 1, 1, 1, 1), line(9, 9, 9, 9, 9), line(1, 1, 1, 1, 1)])
    assert torch.equal(NeighborMean(1, (1, 5), scope="batch").refine(tokens), tokens)
    torch.testing.assert_close(ClipNorm(1, scope="batch").refine(tokens)[1:2], line(2, 2, 2, 2, 2))


def test_a_quantile_over_the_batch():
    # 10 norms, eight of 1 and two of 10: the 0.9 quantile stands at rank 8.1, 10; the 0.75 quantile at 6.75, 1.
    tokens = torch.cat([line(1, 1, 1, 10, 10), line(1, 1, 1, 1, 1)])
    assert torch.equal(ClipNorm(1, quantile=0.9, scope="batch").refine(tokens), tokens)
    assert torch.equal(ClipNorm(1, quantile=0.75).refine(tokens), tokens)
    torch.testing.assert_close(ClipNorm(1, quantile=0.75, scope="batch").refine(tokens)[:1], line(1, 1, 1, 1, 1))


@pytest.mark.parametrize(
    "make", [lambda scope: ClipNorm(1, scope=scope), lambda scope: NeighborMean(1, (1, 2), scope=scope)]
)
def test_a_scope_that_is_not_there_is_refused(make):
    with pytest.raises(ValueError, match="scope") as error:
        make("dataset")
    assert str(error.value) == "`scope` must be one of 'image', 'batch', got 'dataset'"


def made(name, view, image_size, **settings):
    return make_method(name, settings).make_refiner(view, view.grid(*image_size))


def test_a_method_makes_its_refiner_for_the_teachers_prefix_and_grid():
    view = view_vit(zoo.tiny("dinov2_registers"))
    assert made("clip_norm", view, (32, 48)) == ClipNorm(5)
    assert made("clip_norm", view, (32, 48), quantile=0.9) == ClipNorm(5, quantile=0.9)
    assert made("neighbor", view, (32, 48)) == NeighborMean(5, (4, 6))
    assert made("clip_norm", view, (32, 48), scope="batch") == ClipNorm(5, scope="batch")
    refiner = made("neighbor", view, (32, 32), mad_factor=5.0)
    assert refiner == NeighborMean(5, (4, 4), rule=OutlierRule(mad_factor=5.0))
    assert made("neighbor", view, (32, 32), scope="batch") == NeighborMean(5, (4, 4), scope="batch")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantile": 0.9, "mad_factor": 5.0}, "`quantile` and `mad_factor` must not both be given, got 0.9 and 5.0"),
        ({"quantile": 1.5}, "`quantile` must lie in (0, 1), got 1.5"),
        ({"mad_factor": 0}, "`mad_factor` must be greater than 0, got 0"),
        ({"scope": "dataset"}, "`scope` must be one of 'image', 'batch', got 'dataset'"),
    ],
)
def test_settings_out_of_range_are_refused_before_there_is_a_teacher(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_method("clip_norm", settings)
