"""The figures of a comparison."""

import re

import pytest
from comparison_cells import METRICS, cells

from singer_hf.baselines.method_table import METHODS, display_title
from singer_hf.comparison.figures.curves import curves_figure
from singer_hf.comparison.figures.intervals import methods_figure, paired_figure
from singer_hf.comparison.figures.sweep import sweep_figure
from singer_hf.comparison.summary import summarise

pytest.importorskip("matplotlib")


def test_methods_have_a_panel_per_metric_that_is_there():
    figure = methods_figure(summarise(cells()), ("probe_cls", "knn", "outlier_ratio"))
    assert [axis.get_xlabel().replace("\n", " ") for axis in figure.axes] == [
        "linear probe, class token in % ↑",
        "p99/median patch norm ↓",
    ]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["FitNet", "SiNGER", "clip"]
    low, high = figure.axes[0].get_ylim()
    assert low > high, "the first method stands on top"
    assert legend_of(figure) == [
        "better than FitNet at equal seeds",
        "no difference seen, or not judged",
        "one seed",
    ]


def test_methods_are_drawn_at_their_values():
    axis = methods_figure(summarise(cells()), ("probe_cls",)).axes[0]
    seeds, middle, *_ = axis.lines
    assert list(seeds.get_xdata()) == pytest.approx([40, 41, 42])
    assert (list(middle.get_xdata()), list(middle.get_ydata())) == (pytest.approx([41]), [0])
    ends = axis.collections[1].get_segments()[0]
    assert ends.tolist() == [pytest.approx([45.55, 1], abs=0.01), pytest.approx([60.45, 1], abs=0.01)]


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_there_are_only_points(seeds):
    summary = summarise(cells(seeds=seeds))
    for figure in (methods_figure(summary, ("probe_cls",)), paired_figure(summary)):
        (axis,) = figure.axes
        assert not axis.collections
        assert legend_of(figure) == ["one seed"]
        assert figure.get_suptitle().replace("\n", " ").endswith(", a point for each seed")
    assert list(methods_figure(summary, ("probe_cls",)).axes[0].lines[1].get_xdata()) == [50, 53][:seeds]


def test_shares_stay_within_0_and_100_per_cent():
    values = {"fitnet": {"probe_cls": [0.01, 0.6, 0.99]}, "singer": {"probe_cls": [0.9, 0.95, 1.0]}}
    assert methods_figure(summarise(cells(values)), ("probe_cls",)).axes[0].get_xlim() == (0, 100)


def test_methods_without_any_of_the_metrics_are_refused():
    message = "`metrics` must name one of ['probe_cls', 'outlier_ratio', 'e_prob'], got ('knn',)"
    with pytest.raises(ValueError, match=exactly(message)):
        methods_figure(summarise(cells()), ("knn",))


def test_the_paired_figure_shows_the_other_methods():
    figure = paired_figure(summarise(cells()))
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["SiNGER", "clip"]
    assert axis.get_xlabel() == "difference in points (right is better)"
    assert paired_figure(summarise(cells()), "outlier_ratio").axes[0].get_xlabel() == "difference (left is better)"
    assert list(axis.lines[0].get_xdata()) == [0, 0]
    assert list(axis.lines[1].get_xdata()) == pytest.approx([10, 12, 14])


@pytest.mark.parametrize("metric", ["e_prob", "knn"])
def test_a_metric_that_nobody_shares_with_the_baseline_is_refused(metric):
    message = f"`metric` must be one that fitnet and another method have at equal seeds, got {metric!r}"
    with pytest.raises(ValueError, match=exactly(message)):
        paired_figure(summarise(cells()), metric)


def test_curves_are_means_over_seeds_in_the_order_of_their_ends():
    rows = cells()
    for row in rows:
        if row["method"] == "clip":
            row["curve"][-1]["knn_top1"] = 0.9
    rows[0]["curve"].pop()  # a seed that stopped: its method ends at the last common step
    figure = curves_figure(rows)
    fitnet, singer, _ = figure.axes[0].lines
    assert (list(fitnet.get_xdata()), list(fitnet.get_ydata())) == ([500, 1000], pytest.approx([12, 22]))
    assert list(singer.get_ydata()) == pytest.approx([12, 22, 32])
    assert legend_of(figure) == ["clip", "SiNGER", "FitNet"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("step", "kNN in % ↑")


@pytest.mark.parametrize("rows", [cells(), [{"method": "fitnet", "seed": 0, "metrics": {}}]])
def test_a_curve_that_is_not_there_is_refused(rows):
    message = "`name` must be a key of the points of the cells' `curve`, got 'loss'"
    with pytest.raises(ValueError, match=exactly(message)):
        curves_figure(rows, "loss")


def test_a_sweep_shows_its_numbers():
    grid = [["fitnet", "singer"], ["clip", None], ["not run yet", "singer"]]
    figure = sweep_figure(
        summarise(cells()), grid, rows=("rank", ["4", "16", "64"]), columns=("quantile", ["0.9", "0.95"])
    )
    axis, bar = figure.axes
    assert [text.get_text() for text in axis.texts] == [
        *("41.0 ± 2.5", "53.0 ± 7.5", "41.3 ± 8.7", "-", "-", "53.0 ± 7.5"),
    ]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["4", "16", "64"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0.9", "0.95"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("quantile", "rank")
    assert bar.get_ylabel().replace("\n", " ") == "linear probe, class token in % ↑"


@pytest.mark.parametrize(("metric", "colours"), [("probe_cls", "viridis"), ("outlier_ratio", "viridis_r")])
def test_brighter_is_better_in_a_sweep(metric, colours):
    labels = {"rows": ("rank", ["4"]), "columns": ("quantile", ["0.9", "0.95"])}
    figure = sweep_figure(summarise(cells()), [["fitnet", "singer"]], metric, **labels)
    assert figure.axes[0].images[0].cmap.name == colours


def test_a_sweep_of_the_wrong_size_or_without_values_is_refused():
    labels = {"rows": ("rank", ["4"]), "columns": ("quantile", ["0.9", "0.95"])}
    message = (
        "`grid` must have a row for each of ['4'] and in it a name for each of ['0.9', '0.95'], got rows of length [1]"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        sweep_figure(summarise(cells()), [["fitnet"]], **labels)
    message = "`grid` must name methods that have probe_cls, got [['a', None]]"
    with pytest.raises(ValueError, match=exactly(message)):
        sweep_figure(summarise(cells()), [["a", None]], **labels)


@pytest.mark.parametrize("methods", [1, 14])
@pytest.mark.parametrize("seeds", [1, 3])
def test_no_text_is_cut(methods, seeds):
    names = ["fitnet", *(f"a_method_with_a_long_name_{i}" for i in range(methods))]
    rows = cells(dict.fromkeys(names, METRICS["singer"]), seeds)
    summary = summarise(rows)
    for figure in (methods_figure(summary), paired_figure(summary, "outlier_ratio"), curves_figure(rows)):
        assert_inside(figure)


def test_rows_have_names_for_people():
    rows = ("fitnet_token", "unplanted_fitnet", "singer_mean_outlier_x", "my_method", "resinger", "r=4, info_weight=1")
    assert [display_title(row) for row in rows] == [
        *("FitNet token", "unplanted FitNet", "SiNGER mean outlier removed x", "my method", "resinger"),
        "r=4, info_weight=1",
    ]
    assert display_title("test_time_register") == "test-time register"
    assert all(method.title for method in METHODS.values())


def exactly(message):
    return f"^{re.escape(message)}$"


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def assert_inside(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    box = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert box.x0 >= -0.5
    assert box.y0 >= -0.5
    assert box.x1 <= width + 0.5
    assert box.y1 <= height + 0.5
