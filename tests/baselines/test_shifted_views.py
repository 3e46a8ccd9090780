"""Shifted views: what they show, where their patches are put back, and the mean over them."""

import re
from types import SimpleNamespace

import pytest
import torch
from distillers import small_student
from zoo import images, tiny_vit

from singer_hf.baselines.cleanups.shifted_views import ShiftedViews, View, map_back, shift_images
from singer_hf.baselines.method_table import make_method
from singer_hf.vit.features import capture_features

ARGS = SimpleNamespace(kd_weight=1.0, kd_loss="mse", target_norm="none", teacher_layers=[1, 3], student_layers=None)
SETTINGS = {"num_views": 5, "max_shift": 0.25}


def numbered(rows: int, columns: int) -> torch.Tensor:
    return torch.arange(float(rows * columns)).view(1, 1, rows, columns)


def make(**settings):
    method = make_method("shifted_views", {**SETTINGS, **settings})
    return method, method.make_distiller(small_student(), tiny_vit(), ARGS)


def test_a_view_is_shifted_by_whole_patches_and_its_border_reflects_the_image():
    image = numbered(4, 4)
    down = shift_images(image, View(down=1), (1, 2))
    assert down[0, 0].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    left = shift_images(image, View(right=-1), (1, 2))
    assert left[0, 0, 0].tolist() == [2, 3, 2, 1]
    flipped = shift_images(image, View(right=-1, flipped=True), (1, 2))
    assert flipped[0, 0, 0].tolist() == [1, 2, 3, 2]
    assert torch.equal(shift_images(image, View(), (1, 2)), image)


@pytest.mark.parametrize("view", [View(1, 0), View(-1, 1), View(1, -1, True), View(0, 0, True), View(-2, 2, True)])
def test_cells_return_to_the_place_of_the_image_that_they_show(view):
    """With patches of one pixel a feature map is the shifted image itself."""
    image = 1 + numbered(5, 6)
    returned = map_back(shift_images(image, view, (1, 1)), view)
    covered = map_back(torch.ones(1, 1, 5, 6), view)
    assert torch.equal(returned, image * covered)
    assert covered.sum() == (5 - abs(view.down)) * (6 - abs(view.right))


def test_the_views_are_the_image_itself_and_different_shifts_in_range():
    views = ShiftedViews(num_views=8, max_shift=0.15, seed=3).draw_views((14, 8))
    assert views[0] == View()
    assert len({(view.down, view.right) for view in views}) == 8
    assert max(abs(view.down) for view in views) <= 2
    assert max(abs(view.right) for view in views) <= 1
    assert sum(view.flipped for view in views) == 4
    assert views == ShiftedViews(num_views=8, seed=3).draw_views((14, 8))
    assert views != ShiftedViews(num_views=8, seed=4).draw_views((14, 8))
    assert not any(view.flipped for view in ShiftedViews(num_views=8, flips=False).draw_views((14, 8)))
    assert len(ShiftedViews(num_views=10).draw_views((4, 4))) == 9  # all shifts by one patch


def test_the_targets_are_means_over_the_views_that_show_a_patch():
    _, distiller = make()
    pixel_values = images()
    features = distiller.teacher_features(pixel_values)
    assert sorted(features.outputs) == [1, 3]
    assert not features.calls
    total, count = torch.zeros(2, 16, 32), torch.zeros(16)
    for view in distiller.views:
        shown = capture_features(distiller.teacher, shift_images(pixel_values, view, (8, 8)), [3])[3][:, 1:]
        for row in range(4):
            for column in range(4):
                place = (3 - column if view.flipped else column) - view.right
                if 0 <= row - view.down < 4 and 0 <= place < 4:
                    total[:, 4 * (row - view.down) + place] += shown[:, 4 * row + column]
                    count[4 * (row - view.down) + place] += 1
    torch.testing.assert_close(features.outputs[3][:, 1:], total / count[:, None])
    own = capture_features(distiller.teacher, pixel_values, [3])[3]
    assert torch.equal(features.outputs[3][:, :1], own[:, :1])
    assert not torch.allclose(features.outputs[3][:, 1:], own[:, 1:])


def test_an_artifact_at_a_fixed_place_is_divided_by_the_number_of_views():
    _, distiller = make(num_views=9, flips=False)
    with torch.no_grad():
        distiller.teacher.get_parameter("embeddings.position_embeddings")[0, 1 + 5] += 1000.0
        for name, parameter in distiller.teacher.named_parameters():
            if "layers" in name and "norm" not in name:
                parameter.zero_()
    targets = distiller.teacher_features(images()).outputs[3][:, 1:].norm(dim=-1)
    length = 1000 * 32**0.5
    # Place 5 and its 8 neighbours are seen once through the long position, each by 4, 6 or 9 of the views.
    assert targets.max() < 0.3 * length
    assert targets[:, 5] == pytest.approx(torch.full((2,), length / 9), rel=0.02)


def test_a_step_trains_the_student_and_costs_a_pass_per_view():
    method, distiller = make(num_views=4)
    passes = []
    distiller.teacher_view.patch_embedding.register_forward_hook(lambda *args: passes.append(1))
    distiller.train()(images()).loss.backward()
    assert len(passes) == 4
    assert all(parameter.grad is not None for parameter in distiller.projectors.parameters())
    assert method.describe(distiller) == (
        "multi-layer feature distillation, targets averaged over 4 views of the image shifted by up to 1 patches"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_views": 1}, "`num_views` must be at least 2, got 1; use fitnet for one view"),
        ({"max_shift": 0.5}, "`max_shift` must lie in (0, 0.5), got 0.5"),
        (
            {"max_shift": 0.1},
            "`max_shift` must be more than half a patch, got 0.1 of 4 x 4 patches; use at least 0.25",
        ),
    ],
)
def test_what_shifts_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**settings)
