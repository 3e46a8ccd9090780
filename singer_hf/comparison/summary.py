"""Statistics of a comparison: intervals over seeds, and differences to the baseline at equal seeds.

The seeds are the sample. A method and the baseline with the same seed share the student's initial weights and the
order of the images, so the paired differences vary less than the metrics themselves. Verdicts are based on the
differences.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Literal

from scipy.stats import t

from singer_hf.comparison.metric_table import Metric, get_metric, in_order

Verdict = Literal["better", "worse", "no difference seen", "not comparable"]


def summarise(cells: Sequence[Mapping], *, baseline: str = "fitnet", level: float = 0.95) -> dict:
    """Computes the statistics of every method of a comparison, as a dict that can be written as JSON.

    Args:
        cells: ``{"method": str, "seed": int, "metrics": {name: float | None}}`` of each run; None means that the
            metric does not apply to the method. Methods keep their order of appearance.
        baseline: The method that the others are compared with. Without its cells ``paired`` is empty.
        level: Level of the intervals, in (0, 1).

    Returns:
        ``baseline``, ``level``, ``seeds`` (all, ascending), ``metrics`` (names in the order of the table) and

        - ``methods``: method -> metric -> ``n``, ``mean``, ``sd`` (n - 1 in the denominator), ``low``, ``high`` (the
          Student t interval), ``seeds``, ``values``. With one seed ``sd``, ``low`` and ``high`` are None.
        - ``paired``: method -> metric -> the same of the differences method - baseline at equal seeds, with
          ``all_seeds_better`` and ``all_seeds_worse`` (None where neither direction is good) and ``verdict``:
          "better" or "worse" where the interval excludes 0, "no difference seen" where it does not, "not comparable"
          with fewer than two common seeds or where neither direction is good. The baseline is excluded.

    Raises:
        ValueError: If there are no cells, a method has two results for one seed, a metric is not finite, or
            ``level`` is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level!r}; 0.95 gives 95 % intervals")
    _check_cells(cells)
    values = _values(cells)
    base = values.get(baseline, {})
    others = [method for method in values if method != baseline] if baseline in values else []
    return {
        "baseline": baseline,
        "level": level,
        "seeds": sorted({cell["seed"] for cell in cells}),
        "metrics": in_order(name for own in values.values() for name in own),
        "methods": {
            method: {name: _spread(own[name], level) for name in in_order(own)} for method, own in values.items()
        },
        "paired": {
            method: {
                name: _paired(get_metric(name), values[method][name], base.get(name, {}), level)
                for name in in_order(values[method])
            }
            for method in others
        },
    }


def sentence(summary: Mapping, method: str, metric: str = "probe_cls") -> str:
    """Describes the result of one method in one metric, in one sentence.

    Args:
        summary: From :func:`summarise`.
        method: Name of the method.
        metric: Name of the metric.

    Raises:
        ValueError: If ``method`` is not in the summary.
    """
    if method not in summary["methods"]:
        raise ValueError(f"`method` must be one of {list(summary['methods'])}, got {method!r}")
    spread, baseline = summary["methods"][method].get(metric), summary["baseline"]
    kind = get_metric(metric)
    if spread is None:
        return f"{method}: no value for {kind.title}."
    own = f"{with_half_width(spread, kind)} on {kind.title} ({_seeds(spread['n'])})"
    if method == baseline:
        return f"{method}: the baseline, {own}."
    if baseline not in summary["methods"]:
        return f"{method}: {own}; not compared, there is no {baseline}."
    paired = summary["paired"][method][metric]
    if not paired["n"]:
        return f"{method}: {own}; not compared, {baseline} has no value at the same seeds."
    return f"{method}: {_difference(paired, kind, baseline, summary['level'])}."


def with_half_width(spread: Mapping, metric: Metric) -> str:
    """The mean and half the width of its interval, "51.7 ± 1.2"; the mean alone with one seed."""
    if spread["low"] is None:
        return metric.text(spread["mean"])
    return f"{metric.text(spread['mean'])} ± {metric.text((spread['high'] - spread['low']) / 2)}"


def excludes_zero(spread: Mapping) -> bool:
    """Whether there is an interval and 0 lies outside of it."""
    return spread["low"] is not None and (spread["low"] > 0 or spread["high"] < 0)


def _check_cells(cells: Sequence[Mapping]) -> None:
    if not cells:
        raise ValueError("`cells` must hold at least one result, got none")
    seen = set()
    for cell in cells:
        key = (cell["method"], cell["seed"])
        if key in seen:
            raise ValueError(
                f"`cells` must hold one result per method and seed, got {key!r} twice; remove one of them"
            )
        seen.add(key)
        for name, value in cell["metrics"].items():
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"`cells` must hold finite metrics, got {name} = {value!r} of {key!r}; repeat the run or "
                    "remove it; use None for a metric that does not apply"
                )


def _values(cells: Sequence[Mapping]) -> dict[str, dict[str, dict[int, float]]]:
    """Method -> metric -> seed -> value, without missing values, seeds ascending."""
    found: dict[str, dict[str, dict[int, float]]] = {cell["method"]: {} for cell in cells}
    for cell in sorted(cells, key=lambda cell: cell["seed"]):
        for name, value in cell["metrics"].items():
            if value is not None:
                found[cell["method"]].setdefault(name, {})[cell["seed"]] = value
    return found


def _spread(by_seed: Mapping[int, float], level: float) -> dict:
    values = list(by_seed.values())
    sd = stdev(values) if len(values) > 1 else None
    # Not `scipy.stats.ttest_1samp(values, 0).confidence_interval(level)`: for equal values it warns, and it rounds, so
    # that the width is not exactly 0. `mean` and `stdev` are exact there; elsewhere both agree to 3e-14.
    middle = mean(values) if values else None
    low = high = None
    if sd is not None:
        half = float(t.ppf((1 + level) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
        low, high = middle - half, middle + half
    return {
        "n": len(values),
        "mean": middle,
        "sd": sd,
        "low": low,
        "high": high,
        "seeds": list(by_seed),
        "values": values,
    }


def _paired(metric: Metric, own: Mapping[int, float], base: Mapping[int, float], level: float) -> dict:
    differences = {seed: own[seed] - base[seed] for seed in own if seed in base}
    spread = _spread(differences, level)
    gains = [metric.gain(difference) for difference in differences.values()]
    judged = metric.higher_is_better is not None and bool(gains)
    return {
        **spread,
        "all_seeds_better": all(gain > 0 for gain in gains) if judged else None,
        "all_seeds_worse": all(gain < 0 for gain in gains) if judged else None,
        "verdict": _verdict(spread, metric),
    }


def _verdict(differences: Mapping, metric: Metric) -> Verdict:
    if differences["low"] is None or metric.higher_is_better is None:
        return "not comparable"
    if not excludes_zero(differences):
        return "no difference seen"
    return "better" if metric.gain(differences["mean"]) > 0 else "worse"


def _difference(paired: Mapping, metric: Metric, baseline: str, level: float) -> str:
    amount = f"{metric.text(abs(paired['mean']))}{metric.unit}"
    if paired["low"] is None:
        where = "above" if paired["mean"] > 0 else "below"
        found = f"{amount} {where} {baseline}" if paired["mean"] else f"equal to {baseline}"
        return f"one seed: no interval; {found} on {metric.title}"
    signed = f"{metric.text(paired['mean'], signed=True)}{metric.unit}"
    bounds, interval = (paired["low"], paired["high"]), f"{100 * level:g} % interval"
    if paired["verdict"] in ("better", "worse"):
        low, high = sorted(map(abs, bounds))
        ends = f"{interval} {metric.text(low)} to {metric.text(high)}, {_seeds_in_favour(paired, metric)}"
        return f"{paired['verdict']} than {baseline} by {amount} ({ends}) on {metric.title}"
    ends = f"{interval} {metric.text(bounds[0])} to {metric.text(bounds[1])}, {_seeds_in_favour(paired, metric)}"
    if paired["verdict"] == "no difference seen":
        return f"no difference seen from {baseline}: {signed} ({ends}) on {metric.title}"
    return f"{signed} compared with {baseline} ({ends}) on {metric.title}, where neither direction is better"


def _seeds_in_favour(paired: Mapping, metric: Metric) -> str:
    number = paired["n"]
    everyone = "both" if number == 2 else f"all {number}"
    if metric.higher_is_better is None:
        return _seeds(number)
    if paired["all_seeds_better"] or paired["all_seeds_worse"]:
        return f"{_seeds(number)}, {everyone} {'better' if paired['all_seeds_better'] else 'worse'}"
    return f"{_seeds(number)}, {sum(metric.gain(value) > 0 for value in paired['values'])} better"


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"
