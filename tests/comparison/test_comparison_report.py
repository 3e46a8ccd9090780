"""The markdown page and the figures of a comparison."""

import re

import pytest

from singer_hf.comparison.summary import summarise
from singer_hf.comparison.tables import comparison_markdown

# probe_cls by seed: the differences to fitnet are 10, 12 and 14 points for singer, -2, 0 and 3 for clip.
METRICS = {
    "fitnet": {"probe_cls": [0.40, 0.41, 0.42], "outlier_ratio": [2.5, 2.6, 2.7]},
    "singer": {"probe_cls": [0.50, 0.53, 0.56], "outlier_ratio": [1.3, 1.3, 1.3], "e_prob": [0.1, 0.15, 0.2]},
    "clip": {"probe_cls": [0.38, 0.41, 0.45], "outlier_ratio": [2.3, 2.4, None], "e_prob": [None] * 3},
}
FACTS = {"command": "`singer-hf compare study.yaml`", "hardware": "two CPU cores"}
REFERENCES = {"teacher": {"probe_cls": 0.583, "outlier_ratio": None}, "unplanted teacher": {"outlier_ratio": 1.9}}
PAGE = """\
# Comparison of methods

- command: `singer-hf compare study.yaml`
- hardware: two CPU cores

## Quality

| method | probe_cls ↑ | step cost ↓ |
|---|---|---|
| teacher | 58.3 | - |
| fitnet | 41.0 ± 2.5 | 1.00x |
| singer | 53.0 ± 7.5 | 1.15x |
| clip | 41.3 ± 8.7 | - |

`probe_cls`: linear probe, class token in % ↑; step cost: time of a training step relative to fitnet ↓. \
(↑ higher is better, ↓ lower is better)

## Differences to fitnet at equal seeds

| method | probe_cls ↑ |
|---|---|
| singer | **+12.0 [7.0, 17.0]** |
| clip | +0.3 [-5.9, 6.6] |

Method minus fitnet, with the 95 % interval; shares in points. Bold: the interval excludes 0.

## Cleanliness

| method | outlier_ratio ↓ | e_prob ↓ |
|---|---|---|
| unplanted teacher | 1.90 | - |
| fitnet | 2.60 ± 0.25 | - |
| singer | 1.30 ± 0.00 | 0.150 ± 0.124 |
| clip | 2.35 ± 0.64 (n = 2) | - |

`outlier_ratio`: p99/median patch norm ↓; `e_prob`: energy share of Φ_up, largest singular values ↓. \
(↑ higher is better, ↓ lower is better)

## In words

- fitnet: the baseline, 41.0 ± 2.5 on linear probe, class token (3 seeds).
- singer: better than fitnet by 12.0 points (95 % interval 7.0 to 17.0, 3 seeds, all 3 better) on linear probe, \
class token.
- clip: no difference seen from fitnet: +0.3 points (95 % interval -5.9 to 6.6, 3 seeds, 1 better) on linear probe, \
class token.

## How to read the intervals

- `a ± b`: mean over seeds and half the width of its 95 % Student t interval; a value without ± has no interval. \
`(n = ...)`: number of seeds with this metric, where some lack it.
- The intervals cover the variation over seeds only, not other teachers or other data.
- Each interval holds for one method and one metric; they are not corrected for the number of methods. With 2 methods \
compared, intervals that hold jointly with 95 % confidence would have to be 97.5 % intervals (Bonferroni).
"""


def cells(by_method=METRICS, seeds=3):
    return [
        {
            "method": method,
            "seed": seed,
            "metrics": {name: values[seed] for name, values in metrics.items()},
            "curve": [{"step": 500 * (i + 1), "knn_top1": 0.1 * (i + 1) + 0.02 * seed} for i in range(3)],
        }
        for method, metrics in by_method.items()
        for seed in range(seeds)
    ]


def page(rows, **options):
    return comparison_markdown(summarise(rows), **{"step_costs": {}, "references": {}, "facts": {}, **options})


def test_the_whole_page():
    assert page(cells(), step_costs={"fitnet": 1.0, "singer": 1.15}, references=REFERENCES, facts=FACTS) == PAGE


def test_without_costs_there_is_no_cost_column():
    assert "step cost" not in page(cells())
    assert "| method | probe_cls ↑ |\n" in page(cells())


def test_without_the_baseline_the_page_says_so():
    text = page(cells({"singer": METRICS["singer"]}))
    assert "## Differences to fitnet at equal seeds\n\nNone: there is no fitnet among the methods.\n" in text
    assert "- singer: 53.0 ± 7.5 on linear probe, class token (3 seeds); not compared, there is no fitnet." in text


def test_one_seed_shows_no_interval_and_nothing_bold():
    text = page(cells(seeds=1))
    assert "| singer | 50.0 |" in text
    assert "| singer | +10.0 |" in text
    assert "**" not in text
    assert "- singer: one seed: no interval; 10.0 points above fitnet on linear probe, class token." in text


def test_a_metric_with_fewer_seeds_shows_their_number():
    rows = cells()
    del rows[4]  # singer, seed 1
    text = page(rows)
    assert "| singer | 53.0 ± 38.1 (n = 2) |" in text  # 12.706 x .0424 / sqrt(2)
    assert "| singer | +12.0 [-13.4, 37.4] (n = 2) |" in text


def test_an_unknown_metric_comes_last_under_its_name():
    rows = cells()
    for row in rows:
        row["metrics"]["my_metric"] = 2.0
    text = page(rows)
    assert "| method | outlier_ratio ↓ | e_prob ↓ | my_metric |" in text
    assert "largest singular values ↓; `my_metric`. (" in text


def test_the_metric_of_the_sentences_can_be_chosen():
    assert "- fitnet: the baseline, 2.60 ± 0.25 on p99/median patch norm (3 seeds)." in page(
        cells(), metric="outlier_ratio"
    )


class TestFigures:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_methods_have_a_panel_per_metric_that_is_there(self):
        from singer_hf.comparison.figures import methods_figure

        figure = methods_figure(summarise(cells()), ("probe_cls", "knn", "outlier_ratio"))
        assert [axis.get_xlabel().replace("\n", " ") for axis in figure.axes] == [
            "linear probe, class token in % ↑",
            "p99/median patch norm ↓",
        ]
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["fitnet", "singer", "clip"]
        low, high = figure.axes[0].get_ylim()
        assert low > high, "the first method stands on top"
        assert legend_of(figure) == [
            "better than fitnet at equal seeds",
            "no difference seen, or not judged",
            "one seed",
        ]

    def test_methods_are_drawn_at_their_values(self):
        from singer_hf.comparison.figures import methods_figure

        axis = methods_figure(summarise(cells()), ("probe_cls",)).axes[0]
        seeds, middle, *_ = axis.lines
        assert list(seeds.get_xdata()) == pytest.approx([40, 41, 42])
        assert (list(middle.get_xdata()), list(middle.get_ydata())) == (pytest.approx([41]), [0])
        ends = axis.collections[1].get_segments()[0]
        assert ends.tolist() == [pytest.approx([45.55, 1], abs=0.01), pytest.approx([60.45, 1], abs=0.01)]

    def test_methods_without_any_of_the_metrics_are_refused(self):
        from singer_hf.comparison.figures import methods_figure

        message = "`metrics` must name one of ['probe_cls', 'outlier_ratio', 'e_prob'], got ('knn',)"
        with pytest.raises(ValueError, match=exactly(message)):
            methods_figure(summarise(cells()), ("knn",))

    def test_the_paired_figure_shows_the_other_methods(self):
        from singer_hf.comparison.figures import paired_figure

        figure = paired_figure(summarise(cells()))
        (axis,) = figure.axes
        assert [text.get_text() for text in axis.get_yticklabels()] == ["singer", "clip"]
        assert axis.get_xlabel() == "difference in points (right is better)"
        assert paired_figure(summarise(cells()), "outlier_ratio").axes[0].get_xlabel() == "difference (left is better)"
        assert list(axis.lines[0].get_xdata()) == [0, 0]
        assert list(axis.lines[1].get_xdata()) == pytest.approx([10, 12, 14])

    @pytest.mark.parametrize("metric", ["e_prob", "knn"])
    def test_a_metric_that_nobody_shares_with_the_baseline_is_refused(self, metric):
        from singer_hf.comparison.figures import paired_figure

        message = f"`metric` must be one that fitnet and another method have at equal seeds, got {metric!r}"
        with pytest.raises(ValueError, match=exactly(message)):
            paired_figure(summarise(cells()), metric)

    def test_curves_are_means_over_seeds_in_the_order_of_their_ends(self):
        from singer_hf.comparison.figures import curves_figure

        rows = cells()
        for row in rows:
            if row["method"] == "clip":
                row["curve"][-1]["knn_top1"] = 0.9
        rows[0]["curve"].pop()  # a seed that stopped: its method ends at the last common step
        figure = curves_figure(rows)
        fitnet, singer, _ = figure.axes[0].lines
        assert (list(fitnet.get_xdata()), list(fitnet.get_ydata())) == ([500, 1000], pytest.approx([0.12, 0.22]))
        assert list(singer.get_ydata()) == pytest.approx([0.12, 0.22, 0.32])
        assert legend_of(figure) == ["clip", "singer", "fitnet"]
        assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("step", "knn_top1")

    @pytest.mark.parametrize("rows", [cells(), [{"method": "fitnet", "seed": 0, "metrics": {}}]])
    def test_a_curve_that_is_not_there_is_refused(self, rows):
        from singer_hf.comparison.figures import curves_figure

        message = "`name` must be a key of the points of the cells' `curve`, got 'loss'"
        with pytest.raises(ValueError, match=exactly(message)):
            curves_figure(rows, "loss")

    def test_a_sweep_shows_its_numbers(self):
        from singer_hf.comparison.figures import sweep_figure

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
    def test_brighter_is_better_in_a_sweep(self, metric, colours):
        from singer_hf.comparison.figures import sweep_figure

        labels = {"rows": ("rank", ["4"]), "columns": ("quantile", ["0.9", "0.95"])}
        figure = sweep_figure(summarise(cells()), [["fitnet", "singer"]], metric, **labels)
        assert figure.axes[0].images[0].cmap.name == colours

    def test_a_sweep_of_the_wrong_size_or_without_values_is_refused(self):
        from singer_hf.comparison.figures import sweep_figure

        labels = {"rows": ("rank", ["4"]), "columns": ("quantile", ["0.9", "0.95"])}
        message = (
            "`grid` must have a row for each of ['4'] and in it a name for each of ['0.9', '0.95'], got rows of "
            "length [1]"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            sweep_figure(summarise(cells()), [["fitnet"]], **labels)
        message = "`grid` must name methods that have probe_cls, got [['a', None]]"
        with pytest.raises(ValueError, match=exactly(message)):
            sweep_figure(summarise(cells()), [["a", None]], **labels)

    @pytest.mark.parametrize("methods", [1, 14])
    @pytest.mark.parametrize("seeds", [1, 3])
    def test_no_text_is_cut(self, methods, seeds):
        from singer_hf.comparison.figures import curves_figure, methods_figure, paired_figure

        names = ["fitnet", *(f"a_method_with_a_long_name_{i}" for i in range(methods))]
        rows = cells(dict.fromkeys(names, METRICS["singer"]), seeds)
        summary = summarise(rows)
        for figure in (methods_figure(summary), paired_figure(summary, "outlier_ratio"), curves_figure(rows)):
            assert_inside(figure)


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
