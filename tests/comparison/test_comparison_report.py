"""The markdown page of a comparison."""

from comparison_cells import METRICS, cells

from singer_hf.comparison.summary import summarise
from singer_hf.comparison.tables import comparison_markdown

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
