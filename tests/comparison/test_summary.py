"""Intervals over seeds and differences at equal seeds, by hand and against scipy."""

import json
import re

import pytest
from scipy import stats

from singer_hf.comparison.metric_table import METRICS, QUALITY, get_metric, in_order
from singer_hf.comparison.summary import sentence, summarise

T2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom, from a printed table: 4.303
# Seed -> probe_cls. Differences to fitnet: singer +.10 +.12 +.14, clip -.02 0 +.03, vitkd -.10 -.12 -.14.
FITNET = {0: 0.40, 1: 0.41, 2: 0.42}
SINGER = {0: 0.50, 1: 0.53, 2: 0.56}
CLIP = {0: 0.38, 1: 0.41, 2: 0.45}
VITKD = {0: 0.30, 1: 0.29, 2: 0.28}


def cells(metric="probe_cls", **methods):
    return [
        {"method": method, "seed": seed, "metrics": {metric: value}}
        for method, by_seed in methods.items()
        for seed, value in by_seed.items()
    ]


def exactly(message):
    return f"^{re.escape(message)}$"


def of(summary, method, part="methods", metric="probe_cls"):
    return summary[part][method][metric]


def test_mean_spread_and_interval_by_hand():
    spread = of(summarise(cells(fitnet=FITNET)), "fitnet")
    half = T2 * 0.01 / 3**0.5
    assert spread["n"] == 3
    assert spread["mean"] == pytest.approx(0.41)
    assert spread["sd"] == pytest.approx(0.01)
    assert (spread["low"], spread["high"]) == pytest.approx((0.41 - half, 0.41 + half))
    assert (spread["seeds"], spread["values"]) == ([0, 1, 2], [0.40, 0.41, 0.42])


def test_paired_difference_by_hand():
    paired = of(summarise(cells(fitnet=FITNET, singer=SINGER)), "singer", "paired")
    half = T2 * 0.02 / 3**0.5
    assert paired["values"] == pytest.approx([0.10, 0.12, 0.14])
    assert (paired["mean"], paired["low"], paired["high"]) == pytest.approx((0.12, 0.12 - half, 0.12 + half))


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_intervals_are_those_of_scipy(level):
    ours, theirs = [0.512, 0.498, 0.541, 0.507, 0.52], [0.47, 0.482, 0.49, 0.455, 0.51]
    summary = summarise(cells(fitnet=dict(enumerate(theirs)), singer=dict(enumerate(ours))), level=level)
    spread, paired = of(summary, "singer"), of(summary, "singer", "paired")
    expected = stats.t.interval(level, 4, loc=spread["mean"], scale=stats.sem(ours))
    assert (spread["low"], spread["high"]) == pytest.approx(tuple(expected))
    test = stats.ttest_rel(ours, theirs)
    assert (paired["low"], paired["high"]) == pytest.approx(tuple(test.confidence_interval(level)))
    assert (paired["verdict"] == "better") == (test.pvalue < 1 - level)


def test_seeds_are_paired_whatever_the_order_of_the_cells():
    shuffled = cells(singer=SINGER, fitnet=FITNET)[::-1]
    paired = of(summarise(shuffled), "singer", "paired")
    assert paired["seeds"] == [0, 1, 2]
    assert paired["values"] == pytest.approx([0.10, 0.12, 0.14])


def test_only_common_seeds_are_paired():
    summary = summarise(cells(fitnet=FITNET, singer={1: 0.53, 2: 0.56, 7: 0.9}))
    assert of(summary, "singer", "paired")["seeds"] == [1, 2]
    assert of(summary, "singer")["n"] == 3
    assert summary["seeds"] == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("method", "verdict", "better", "worse"),
    [
        (SINGER, "better", True, False),
        (CLIP, "no difference seen", False, False),
        (VITKD, "worse", False, True),
        (FITNET, "no difference seen", False, False),
        ({0: 0.5}, "not comparable", True, False),
        ({5: 0.5}, "not comparable", None, None),
    ],
)
def test_verdicts_where_higher_is_better(method, verdict, better, worse):
    paired = of(summarise(cells(fitnet=FITNET, other=method)), "other", "paired")
    assert (paired["verdict"], paired["all_seeds_better"], paired["all_seeds_worse"]) == (verdict, better, worse)


def test_the_verdict_is_reversed_where_lower_is_better():
    summary = summarise(cells("gram_clean", fitnet=FITNET, singer=SINGER, vitkd=VITKD))
    assert of(summary, "vitkd", "paired", "gram_clean")["verdict"] == "better"
    assert of(summary, "vitkd", "paired", "gram_clean")["all_seeds_better"] is True
    assert of(summary, "singer", "paired", "gram_clean")["verdict"] == "worse"


@pytest.mark.parametrize("metric", ["gram_teacher", "cka_teacher", "a_new_metric"])
def test_there_is_no_verdict_where_neither_direction_is_good(metric):
    paired = of(summarise(cells(metric, fitnet=FITNET, singer=SINGER)), "singer", "paired", metric)
    assert (paired["verdict"], paired["all_seeds_better"], paired["all_seeds_worse"]) == ("not comparable", None, None)
    assert paired["low"] > 0


def test_one_seed_has_no_interval():
    summary = summarise(cells(fitnet={3: 0.40}, singer={3: 0.421}))
    assert of(summary, "singer") == {
        **{"n": 1, "mean": 0.421, "sd": None, "low": None, "high": None},
        **{"seeds": [3], "values": [0.421]},
    }
    paired = of(summary, "singer", "paired")
    assert (paired["n"], paired["low"], paired["high"]) == (1, None, None)


def test_equal_values_have_an_interval_of_no_width():
    summary = summarise(cells(fitnet=dict.fromkeys(range(7), 0.1), singer=dict.fromkeys(range(7), 0.3)))
    spread, paired = of(summary, "singer"), of(summary, "singer", "paired")
    assert spread["sd"] == 0
    assert spread["low"] == spread["mean"] == spread["high"] == 0.3
    assert paired["low"] == paired["high"] == pytest.approx(0.2)
    assert paired["verdict"] == "better"


def test_missing_metrics_are_left_out():
    rows = cells(fitnet=FITNET, singer=SINGER)
    for row in rows:
        row["metrics"]["e_prob"] = 0.15 if row["method"] == "singer" else None
    rows[-1]["metrics"]["knn"] = 0.5
    summary = summarise(rows)
    assert list(summary["methods"]["fitnet"]) == ["probe_cls"]
    assert list(summary["methods"]["singer"]) == ["probe_cls", "knn", "e_prob"]
    paired = of(summary, "singer", "paired", "e_prob")
    assert (paired["n"], paired["mean"], paired["verdict"]) == (0, None, "not comparable")


def test_without_the_baseline_nothing_is_paired():
    summary = summarise(cells(singer=SINGER, clip=CLIP))
    assert summary["paired"] == {}
    assert summary["baseline"] == "fitnet"


def test_any_method_can_be_the_baseline():
    summary = summarise(cells(fitnet=FITNET, singer=SINGER), baseline="singer")
    assert list(summary["paired"]) == ["fitnet"]
    assert of(summary, "fitnet", "paired")["verdict"] == "worse"


def test_a_summary_survives_json():
    rows = cells(fitnet=FITNET, singer={0: 0.5}) + cells("e_prob", vitkd=VITKD)
    summary = summarise(rows)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_methods_keep_their_order_and_metrics_that_of_the_table():
    rows = [
        {"method": "vitkd", "seed": 1, "metrics": {"zeta": 1.0, "gram_clean": 0.1, "alpha": 2.0, "probe_cls": 0.3}},
        {"method": "fitnet", "seed": 0, "metrics": {"knn": 0.2}},
    ]
    summary = summarise(rows)
    assert list(summary["methods"]) == ["vitkd", "fitnet"]
    assert summary["metrics"] == ["probe_cls", "knn", "gram_clean", "zeta", "alpha"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "`cells` must hold at least one result, got none"),
        (
            cells(fitnet=FITNET) + cells(fitnet={2: 0.5}),
            "`cells` must hold one result per method and seed, got ('fitnet', 2) twice; remove one of them",
        ),
        (
            cells(fitnet={0: float("nan")}),
            "`cells` must hold finite metrics, got probe_cls = nan of ('fitnet', 0); repeat the run or remove it; "
            "use None for a metric that does not apply",
        ),
    ],
)
def test_wrong_cells_are_refused(rows, message):
    with pytest.raises(ValueError, match=exactly(message)):
        summarise(rows)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_outside_0_to_1_is_refused(level):
    message = f"`level` must be in (0, 1), got {level}; 0.95 gives 95 % intervals"
    with pytest.raises(ValueError, match=exactly(message)):
        summarise(cells(fitnet=FITNET), level=level)


# Half widths by hand: T2 x sd / sqrt(3); sd of the differences: singer .02 -> 5.0 points, clip .0252 -> 6.3 points.
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            SINGER,
            "m: better than fitnet by 12.0 points (95 % interval 7.0 to 17.0, 3 seeds, all 3 better) on linear probe, "
            "class token.",
        ),
        (
            VITKD,
            "m: worse than fitnet by 12.0 points (95 % interval 7.0 to 17.0, 3 seeds, all 3 worse) on linear probe, "
            "class token.",
        ),
        (
            CLIP,
            "m: no difference seen from fitnet: +0.3 points (95 % interval -5.9 to 6.6, 3 seeds, 1 better) on linear "
            "probe, class token.",
        ),
        (
            {0: 0.50, 1: 0.53},  # +10 and +12 points: mean 11, half width 12.706 x sqrt(2) / sqrt(2)
            "m: no difference seen from fitnet: +11.0 points (95 % interval -1.7 to 23.7, 2 seeds, both better) on "
            "linear probe, class token.",
        ),
        ({0: 0.421}, "m: one seed: no interval; 2.1 points above fitnet on linear probe, class token."),
        ({0: 0.379}, "m: one seed: no interval; 2.1 points below fitnet on linear probe, class token."),
        ({0: 0.40}, "m: one seed: no interval; equal to fitnet on linear probe, class token."),
        (
            {5: 0.421},
            "m: 42.1 on linear probe, class token (1 seed); not compared, fitnet has no value at the same seeds.",
        ),
    ],
)
def test_sentences(method, expected):
    assert sentence(summarise(cells(fitnet=FITNET, m=method)), "m") == expected


def test_sentences_about_the_baseline_and_without_it():
    own = "41.0 ± 2.5 on linear probe, class token (3 seeds)"
    assert sentence(summarise(cells(fitnet=FITNET)), "fitnet") == f"fitnet: the baseline, {own}."
    alone = summarise(cells(other=FITNET))
    assert sentence(alone, "other") == f"other: {own}; not compared, there is no fitnet."
    assert sentence(alone, "other", "e_prob") == "other: no value for energy share of Φ_up, largest singular values."


def test_sentences_about_other_metrics():
    lower = summarise(cells("gram_clean", fitnet=FITNET, singer=SINGER, vitkd=VITKD), level=0.9)
    assert sentence(lower, "vitkd", "gram_clean") == (  # 90 %: 2.920 x .02 / sqrt(3) = .034
        "vitkd: better than fitnet by 0.120 (90 % interval 0.086 to 0.154, 3 seeds, all 3 better) on Gram distance to "
        "the unplanted teacher."
    )
    neither = summarise(cells("cka_teacher", fitnet=FITNET, singer=SINGER))
    assert sentence(neither, "singer", "cka_teacher") == (
        "singer: +0.120 compared with fitnet (95 % interval 0.070 to 0.170, 3 seeds) on CKA with the teacher, where "
        "neither direction is better."
    )


def test_a_sentence_about_an_unknown_method_is_refused():
    message = "`method` must be one of ['fitnet'], got 'fitnett'"
    with pytest.raises(ValueError, match=exactly(message)):
        sentence(summarise(cells(fitnet=FITNET)), "fitnett")


def test_directions_of_the_table():
    directions = {metric.name: metric.higher_is_better for metric in METRICS}
    assert {name for name, direction in directions.items() if direction} == {
        *("probe_cls", "probe_mean", "knn", "mean_iou", "cka_clean", "e_safe", "cosine_artifacts", "cosine_elsewhere")
    }
    assert {name for name, direction in directions.items() if direction is None} == {
        *("gram_teacher", "cka_teacher", "artifact_alignment", "other_alignment", "class_attention"),
        *("auroc_norm", "auroc_direction", "auroc_frequency"),
    }
    assert set(QUALITY) < set(directions)


def test_values_are_shown_in_the_unit_of_their_metric():
    assert get_metric("probe_cls").text(0.5123) == "51.2"
    assert get_metric("probe_cls").text(-0.0001, signed=True) == "+0.0"
    assert get_metric("depth_rmse").text(0.91234) == "0.912"
    assert get_metric("new").text(1.0) == "1.000"
    assert get_metric("knn").text(None) == "-"
    assert in_order(["b", "knn", "b", "probe_cls"]) == ["probe_cls", "knn", "b"]
