"""Local outliers, projected outliers and constant outliers, on tokens whose right answer is written out."""

import re
from types import SimpleNamespace

import planted
import pytest
import torch
import zoo
from distillers import small_student
from torch import Tensor

from singer_hf.artifacts.directions import accumulated_direction
from singer_hf.artifacts.local_outlier_factor import local_outlier_factor
from singer_hf.baselines.cleanups.local_outliers import LocalOutlierMean
from singer_hf.baselines.cleanups.mean_outlier import ConstantOutliers
from singer_hf.baselines.cleanups.neighbor_mean import NeighborMean
from singer_hf.baselines.cleanups.norm_thresholds import SigmaRule
from singer_hf.baselines.cleanups.refiner_method import DeviceCopy
from singer_hf.baselines.cleanups.singular_direction import ProjectedOutliers
from singer_hf.baselines.method_table import make_method
from singer_hf.vit.structure import view_vit

ARGS = SimpleNamespace(kd_weight=1.0, kd_loss="mse", target_norm="none", teacher_layers=None, student_layers=None)
AXIS = DeviceCopy(torch.tensor([0.0, 1.0]))
REFINERS = {
    "local_outlier_factor": lambda grid: LocalOutlierMean(5, grid, 6, 0.05),
    "singular_direction": lambda grid: ProjectedOutliers(5, DeviceCopy(torch.eye(8)[1]), SigmaRule(4.0), "image"),
    "mean_outlier": lambda grid: ConstantOutliers(5, DeviceCopy(torch.full((8,), 9.0))),
}


def points(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[None]


@pytest.mark.parametrize("name", REFINERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_prefix_tokens_and_inliers_are_bit_for_bit_those_that_came_in(name, dtype):
    tokens = torch.rand(2, 5 + 24, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens[:, 0] = 1000.0
    tokens[0, 5 + 3] *= 100.0
    tokens[1, 5 + 7] *= 100.0
    before = tokens.clone()
    refined = REFINERS[name]((4, 6)).refine(tokens)
    assert (refined.dtype, refined.shape) == (dtype, tokens.shape)
    assert torch.equal(tokens, before)
    assert (refined != tokens).any(-1).nonzero().tolist() == [[0, 5 + 3], [1, 5 + 7]]


def test_a_local_outlier_of_ordinary_norm_is_replaced_by_its_neighbours():
    # All norms are about 5; patch 4 lies on the other side. A rule on norms sees nothing.
    tokens = points((5, 0.1), (5, 0.2), (5, 0.3), (5, 0.4), (-5, 0), (5, 0.5), (5, 0.6), (5, 0.7), (5, 0.8))
    refined = LocalOutlierMean(0, (3, 3), num_neighbors=3).refine(tokens)
    expected = tokens.clone()
    expected[0, 4] = torch.tensor([5.0, 3.6 / 8])
    torch.testing.assert_close(refined, expected)
    assert torch.equal(NeighborMean(0, (3, 3)).refine(tokens), tokens)


def test_the_share_of_every_image_with_the_largest_factors_is_replaced():
    tokens = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(0))
    outliers = LocalOutlierMean(0, (5, 8), num_neighbors=10, share=0.1).outliers(tokens)
    assert outliers.sum(dim=1).tolist() == [4, 4, 4]
    factors = local_outlier_factor(tokens, 10)
    for image in range(3):
        assert factors[image][outliers[image]].min() > factors[image][~outliers[image]].max()
    assert LocalOutlierMean(0, (5, 8), share=0.001).outliers(tokens).sum() == 3  # at least one


def test_local_outliers_need_the_grid_of_the_tokens():
    with pytest.raises(ValueError, match=r"^8 patch tokens do not fill a grid of 3 x 3"):
        LocalOutlierMean(1, (3, 3)).refine(torch.zeros(1, 9, 2))


def test_outliers_lose_their_part_along_the_direction():
    # 19 norms of 1 and one of 10: mean 1.45, deviation 9 * sqrt(.05 * .95) = 1.96, 4.36 deviations away.
    tokens = points(*[(0.6, 0.8)] * 19, (6, 8))
    refined = ProjectedOutliers(0, AXIS, SigmaRule(4.0), "image").refine(tokens)
    torch.testing.assert_close(refined, points(*[(0.6, 0.8)] * 19, (6, 0)))
    assert torch.equal(ProjectedOutliers(0, AXIS, SigmaRule(4.5), "image").refine(tokens), tokens)


def test_the_scope_of_the_deviations_is_the_batch():
    # Two of 20 are 3 deviations away, sqrt(.9 / .1), but two of 60 are sqrt(29) = 5.4 away.
    crowded = points(*[(0.6, 0.8)] * 18, (6, 8), (6, 8))
    tokens = torch.cat([crowded, *[points(*[(0.6, 0.8)] * 20)] * 2])
    assert torch.equal(ProjectedOutliers(0, AXIS, SigmaRule(4.0), "image").refine(tokens), tokens)
    refined = ProjectedOutliers(0, AXIS, SigmaRule(4.0), "batch").refine(tokens)
    torch.testing.assert_close(refined[:1], points(*[(0.6, 0.8)] * 18, (6, 0), (6, 0)))
    assert torch.equal(refined[1:], tokens[1:])


def test_the_sigma_rule_has_the_deviation_of_the_whole_population():
    norms = torch.tensor([[1.0, 1.0, 1.0, 5.0]])  # mean 2, deviation sqrt(3)
    threshold, mean = SigmaRule(1.5).thresholds(norms)
    torch.testing.assert_close(threshold, torch.tensor([[2 + 1.5 * 3**0.5]]))
    assert mean.item() == 2
    assert SigmaRule(1.5).mask(norms).tolist() == [[False, False, False, True]]


def test_outliers_become_the_token_that_is_given():
    tokens = torch.cat([torch.full((1, 1, 2), 9.0), points((1, 0), (0, 1), (1, 0), (0, 1), (6, 8))], dim=1)
    refined = ConstantOutliers(1, DeviceCopy(torch.tensor([3.0, 4.0]))).refine(tokens)
    assert refined[0].tolist() == [[9, 9], [1, 0], [0, 1], [1, 0], [0, 1], [3, 4]]
    assert ConstantOutliers(1, None).refine(tokens) is tokens


def test_a_token_is_copied_to_a_device_once_and_not_in_every_step():
    copy, meta = DeviceCopy(torch.ones(2)), torch.device("meta")
    first = copy.on(meta)
    assert first.device == meta
    assert copy.on(meta) is first


def test_the_mean_outlier_is_that_of_the_calibration_images():
    images = [planted.planted_images(batch=2), planted.planted_images(batch=1)]
    teacher = make_method("mean_outlier").prepare(planted.planted_vit(), images)
    assert sorted(teacher.mean_outliers) == [1, 2, 3]
    for block, places in ((1, planted.PLANTED), (3, planted.LASTING)):
        expected = planted.expected_tokens(block)[list(places)].mean(dim=0).float()
        torch.testing.assert_close(teacher.mean_outliers[block], expected, rtol=1e-4, atol=1e-4)


def distiller_of(name, teacher=None, **settings):
    method, teacher = make_method(name, settings), teacher or planted.planted_vit()
    teacher = method.prepare(teacher, [planted.planted_images(batch=2)])
    student = small_student(image_size=planted.IMAGE, patch_size=planted.PATCH)
    return method, method.make_distiller(student, teacher, SimpleNamespace(**{**vars(ARGS), "teacher_layers": [0, 3]}))


def test_a_block_without_outliers_in_the_calibration_is_left_alone():
    method, distiller = distiller_of("mean_outlier", mad_factor=5.0)
    raw = distiller.teacher_features(planted.planted_images(batch=2)).outputs
    refined = distiller.refine(raw)
    assert refined[0] is raw[0]
    means = planted.expected_tokens(3)[list(planted.LASTING)].mean(dim=0).float()
    for place in planted.LASTING:
        torch.testing.assert_close(refined[3][:, 1 + place], means.expand(2, -1), rtol=1e-4, atol=1e-4)
    assert method.describe(distiller) == (
        "multi-layer feature distillation, targets refined by ConstantOutliers(num_prefix_tokens=1, quantile=None, "
        "rule=OutlierRule(mad_factor=5.0, mad_floor=0.1, absolute=None), scope='image')"
    )


def test_every_block_has_the_direction_of_the_blocks_up_to_it():
    teacher = zoo.tiny("dinov2")
    method = make_method("singular_direction", {"sigma": 3.0, "scope": "batch"})
    refiners = method.make_refiners(teacher, [1, 3], (4, 4))
    for block, refiner in refiners.items():
        assert refiner == ProjectedOutliers(1, AXIS, SigmaRule(3.0), "batch")
        assert torch.equal(refiner.direction.on(torch.device("cpu")), accumulated_direction(view_vit(teacher), block))


@pytest.mark.parametrize("name", ["local_outlier_factor", "singular_direction", "mean_outlier"])
def test_a_method_trains_a_student(name):
    _, distiller = distiller_of(name)
    assert sorted(distiller.refiners) == [0, 3]
    before = {key: value.clone() for key, value in distiller.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=1e-2)
    distiller.train()(planted.planted_images(batch=2)).loss.backward()
    optimizer.step()
    changed = {key for key, value in distiller.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("student.") for key in changed)
    assert not any(key.startswith("teacher.") for key in changed)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("local_outlier_factor", {"num_neighbors": 0}, "`num_neighbors` must be at least 1, got 0"),
        ("local_outlier_factor", {"share": 1.0}, "`share` must lie in (0, 1), got 1.0"),
        ("singular_direction", {"sigma": 0.0}, "`sigma` must be greater than 0, got 0.0"),
        ("singular_direction", {"scope": "all"}, "`scope` must be one of 'image', 'batch', got 'all'"),
        ("mean_outlier", {"quantile": 2.0}, "`quantile` must lie in (0, 1), got 2.0; `mad_factor` needs no share"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_method(name, settings)


def test_mean_outliers_need_images_with_outliers_and_a_prepared_teacher():
    method = make_method("mean_outlier", {"mad_factor": 1000.0})
    assert method.needs_images
    with pytest.raises(ValueError, match=r"^`images` must have outliers after some block, got none; use more images"):
        method.prepare(planted.planted_vit(), [planted.planted_images(batch=1)])
    with pytest.raises(ValueError, match=r"^`teacher` must be prepared by `prepare`"):
        method.make_refiners(planted.planted_vit(), [1], planted.GRID)


@zoo.every_family
@pytest.mark.parametrize("name", ["singular_direction", "local_outlier_factor", "shifted_views", "relational"])
def test_every_family_can_be_the_teacher(name, family):
    student, args = small_student(), SimpleNamespace(**{**vars(ARGS), "teacher_layers": [1, 3]})
    distiller = make_method(name).make_distiller(student, zoo.tiny(family), args)
    assert distiller(zoo.images()).loss.isfinite()
