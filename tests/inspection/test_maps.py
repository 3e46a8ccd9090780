"""Checks of drawn figures: no text overlaps another text or the edge of the figure."""

import sys
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from planted import GRID, planted_images, planted_vit

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.text import Text
from zoo import tiny_vit

from singer_hf.cards.drawing import short, spread
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.snapshots import Snapshot, take_snapshot
from singer_hf.inspection.report.curves import norm_histograms, outlier_shares, quantile_curves, singular_spectrum
from singer_hf.inspection.report.maps import (
    norm_maps,
    outlier_positions,
    pca_colours,
    pca_maps,
    relative_norm_maps,
    similarity_maps,
)
from singer_hf.training.figures import longest_norms, loss_curves, norm_rows

LONG_NAME = "an-organisation-of-many-words/a-vision-transformer-of-many-words-patch16-224"
GRIDS = [(4, 6), (14, 14), (16, 7), (10, 24)]


@pytest.fixture(scope="module")
def audits():
    planted = audit(planted_vit(), planted_images(3), name="planted", progress=False)
    refined = audit(planted_vit(), planted_images(3), name="teacher", progress=False)
    refined.refined = [refined.blocks[0], refined.blocks[3]]
    deep = audit(tiny_vit(24, image_size=(32, 48)), planted_images(2), name=LONG_NAME, progress=False)
    return {"planted": planted, "refined": refined, "deep": deep}


def _snapshot(grid, name="teacher", blocks=4, images=3, refined=False):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, grid[0] * grid[1], 8, generator=generator)
    norms = torch.stack([features.norm(dim=-1)] * blocks)
    norms[:, :, 5] *= 40
    shown = torch.rand(images, grid[0] * 8, grid[1] * 8, 3, generator=generator)
    extra = {"refined_norms": {1: norms[1], blocks - 1: norms[-1] / 2}, "refined_features": 2 * features}
    return Snapshot(name, shown, grid, norms, features, **(extra if refined else {}))


def _visible_texts(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    skipped = _undrawn(figure)
    skipped |= {id(text) for axis in figure.axes if not axis.get_visible() for text in axis.findobj(Text)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if id(text) not in skipped]
    return canvas, [(text, box) for text, box in boxes if box.width > 0]


def _undrawn(figure):
    """Labels of ticks outside the limits of their axis, which are kept as objects."""
    undrawn = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-6 * (high - low)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low - slack <= tick.get_loc() <= high + slack:
                    undrawn |= {id(tick.label1), id(tick.label2)}
    return undrawn


def assert_readable(figure):
    canvas, texts = _visible_texts(figure)
    width, height = canvas.get_width_height()
    for text, box in texts:
        inside = box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= width + 0.5 and box.y1 <= height + 0.5
        assert inside, f"{text!r} is cut: {box} in {width} x {height}"
    for (text, box), (other, other_box) in combinations(texts, 2):
        assert not _overlap(box, other_box), f"{text!r} and {other!r} overlap"


def _overlap(box, other):
    wide = min(box.x1, other.x1) - max(box.x0, other.x0)
    high = min(box.y1, other.y1) - max(box.y0, other.y0)
    return wide > 0.5 and high > 0.5


@pytest.mark.parametrize("grid", GRIDS)
def test_maps_are_readable_on_any_grid(grid):
    snapshots = [_snapshot(grid, refined=True, images=2), _snapshot(grid, LONG_NAME, blocks=12, images=2)]
    figures = [norm_maps(snapshots[0]), norm_maps(snapshots[1]), pca_maps(snapshots)]
    figures += [similarity_maps(snapshots, (grid[0] - 1, 0)), relative_norm_maps(snapshots)]
    for figure in figures:
        assert_readable(figure)


@pytest.mark.parametrize("which", [["planted"], ["refined"], ["deep"]])
def test_curves_are_readable(audits, which):
    results = [audits[name] for name in which]
    assert_readable(quantile_curves(list(audits.values()) if which == ["deep"] else results))
    for result in results:
        for draw in (norm_histograms, outlier_shares, outlier_positions):
            assert_readable(draw(result))


@pytest.mark.parametrize("width", [16, 1024])
def test_spectra_are_readable(width):
    assert_readable(singular_spectrum(torch.logspace(0, -8, width).tolist(), width // 4))


def test_the_check_sees_overlaps_and_cuts():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.text(0.3, 0.5, "one")
    figure.text(0.35, 0.5, "two")
    with pytest.raises(AssertionError, match="'one' and 'two' overlap"):
        assert_readable(figure)
    figure = Figure(figsize=(2, 1))
    figure.text(0.95, 0.5, "far out")
    with pytest.raises(AssertionError, match="'far out' is cut"):
        assert_readable(figure)


def test_all_norm_maps_share_one_colour_scale():
    figure = norm_maps(_snapshot((4, 6)), blocks=[0, 3])
    scales = [image.norm for axis in figure.axes for image in axis.images if image.get_array().ndim == 2]
    assert len(scales) == 3 * 2
    assert all(scale is scales[0] for scale in scales)
    assert isinstance(scales[0], LogNorm)  # the norms span more than a factor of 10


def test_maps_keep_rows_and_columns():
    snapshot = take_snapshot(planted_vit(), planted_images(1))
    figure = norm_maps(snapshot, blocks=[1])
    shown = next(image for axis in figure.axes for image in axis.images if image.get_array().shape == GRID)
    bright = torch.tensor(shown.get_array()).flatten().topk(3).indices
    assert sorted(bright.tolist()) == [0, 8, 23]


def test_the_cross_marks_the_same_place_on_every_grid():
    snapshots = [_snapshot((4, 6)), _snapshot((8, 12))]
    figure = similarity_maps(snapshots, (1, 4))
    # The centre of cell (1, 4) of 4 x 6 lies at (1.5 / 4, 4.5 / 6) of the image, on 8 x 12 at (3, 9) in cell edges.
    places = [axis.lines[-1].get_xydata()[0].tolist() for axis in figure.axes[:3]]
    assert places == [[4.5 * 8 - 0.5, 1.5 * 8 - 0.5], [4.0, 1.0], [8.5, 2.5]]
    first = next(image.get_array() for image in figure.axes[1].images)
    assert float(first[1, 4]) == pytest.approx(1.0)


def test_cosines_have_a_diverging_scale_with_white_at_zero():
    figure = similarity_maps([_snapshot((4, 6))], (0, 0))
    (shown,) = figure.axes[1].images
    assert shown.norm.vmin == -shown.norm.vmax == -1
    assert min(shown.cmap(0.5)) > 0.95
    assert shown.cmap(0.9)[0] > shown.cmap(0.9)[2]
    assert shown.cmap(0.1)[0] < shown.cmap(0.1)[2]


def test_norms_of_all_models_are_shown_relative_to_their_median():
    large, small = _snapshot((4, 6)), _snapshot((4, 6), name="small")
    scaled = replace(small, norms=small.norms / 100)
    shown = [image for axis in relative_norm_maps([large, scaled]).axes for image in axis.images]
    maps = [torch.tensor(image.get_array()) for image in shown if image.get_array().ndim == 2]
    for left, right in zip(maps[:3], maps[3:6], strict=True):
        assert torch.allclose(left, right)
    assert torch.allclose(maps[0].flatten(), large.norms[-1][0] / large.norms[-1].median())


def test_a_patch_off_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"`patch` must lie on the grid of 4 x 6 patches, got \(4, 0\)"):
        similarity_maps([_snapshot((4, 6))], (4, 0))


def test_components_have_one_basis_for_all_images():
    features = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0] + [1.0] * 7)
    features[1, :5] = features[0, :5]
    colours = pca_colours(features)
    assert colours.shape == (2, 30, 3)
    assert torch.equal(colours[1, :5], colours[0, :5])
    assert (float(colours.min()), float(colours.max())) == (0.0, 1.0)
    order = colours[..., 0].flatten().argsort()
    loudest = features[..., 0].flatten()[order]
    assert abs(float(torch.corrcoef(torch.stack([loudest, torch.arange(60.0)]))[0, 1])) > 0.9


def test_blocks_are_spread_over_the_depth():
    assert spread(4, 6) == [0, 1, 2, 3]
    assert spread(24, 6) == [0, 5, 9, 14, 18, 23]
    assert short("a" * 40, 11) == "aaaa…aaaaa"


def test_a_loss_curve_names_the_terms_that_a_run_has():
    steps = [{"step": i, "kd_loss": 2.0, "outlier_loss": 0.0, "info_loss": 0.0} for i in (1, 2)]
    weights = {"kd_loss": 1.0, "outlier_loss": 0.01, "info_loss": 1.0}
    assert legend(loss_curves(steps, weights)) == ["loss", "1 × L_KD"]
    steps, weights = [step | {"generation_loss": 20.0} for step in steps], {"kd_loss": 1.0, "generation_loss": 0.05}
    assert legend(loss_curves(steps, weights)) == ["loss", "1 × L_KD", "0.05 × L_gen"]


def test_a_loss_curve_shows_what_each_term_adds():
    steps = [{"step": i, "loss": 9.0, "kd_loss": 2.0, "outlier_loss": 50.0} for i in (10, 20)]
    figure = loss_curves(steps, {"kd_loss": 1.5, "outlier_loss": 0.01}, kd_start=10)
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[0.5, 3.5], [None, 3.0], [0.5, 0.5]]


def test_a_negligible_term_does_not_stretch_the_axis():
    steps = [{"step": i, "kd_loss": 2.0, "info_loss": 1e-9} for i in (10, 20)]
    figure = loss_curves(steps, {"kd_loss": 1.0, "info_loss": 1.0})
    assert legend(figure) == ["loss", "1 × L_KD", "1 × L_info (below the axis)"]
    assert figure.axes[0].get_ylim() == pytest.approx((2e-4 / 1.5, 3.0))


def test_norm_rows_have_one_scale_with_plain_ticks():
    norms = torch.ones(2, 2, 3)
    norms[1, 0, 0] = 12.0
    figure = norm_rows(torch.zeros(2, 8, 12, 3), {"teacher": norms, "student": 5 * norms})
    *panels, bar = figure.axes
    assert [axis.get_title() for axis in panels] == ["input", "teacher", "student", "", "", ""]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["1×", "3×", "10×"]
    assert [axis.images[0].norm.vmax for axis in panels if axis.images[0].get_array().ndim == 2] == [12.0] * 4
    # No empty bands: all panels have the aspect ratio of the images.
    width, height = figure.get_size_inches()
    for box in (axis.get_position() for axis in panels):
        assert box.width * width / (box.height * height) == pytest.approx(12 / 8)


def test_images_with_the_longest_tokens_come_first():
    norms = torch.ones(3, 2, 2)
    norms[2, 1, 0], norms[0, 0, 0] = 9.0, 4.0
    assert longest_norms(norms, 2) == [2, 0]
    assert longest_norms(norms, 8) == [2, 0, 1]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_figures_leave_no_global_state():
    norm_maps(_snapshot((4, 6)))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
