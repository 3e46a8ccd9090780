"""Statistics of a comparison: intervals over seeds, and differences to the baseline at equal seeds.

The seeds are the sample. A method and the baseline run with the same seed share the student's first weights and the
order of the data, so their differences spread less than the figures themselves: verdicts are read off the differences.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Literal

from scipy.stats import t

from singer_hf.comparison.metric_table import Metric, get_metric, in_order

Verdict = Literal["better", "worse", "no difference seen", "not comparable"]


def summarise(cells: Sequence[Mapping], *, baseline: str = "fitnet", level: float = 0.95) -> dict:
    """What the cells of a comparison say about each method, as a dict that can be written as JSON.

    Args:
        cells: ``{"method": str, "seed": int, "metrics": {name: float | None}}`` of each run; None means that the
            figure does not apply to the method. Methods keep the order in which they come.
        baseline: The method that the others are compared with. Without its cells there is no paired part.
        level: Level of the intervals, in (0, 1).

    Returns:
        ``baseline``, ``level``, ``seeds`` (all, ascending), ``metrics`` (names in the order of the table) and

        - ``methods``: method -> metric -> ``n``, ``mean``, ``sd`` (n - 1 in the denominator), ``low``, ``high`` (ends
          of the Student t interval), ``seeds``, ``values``. With one seed ``sd``, ``low`` and ``high`` are None.
        - ``paired``: method -> metric -> the same of the differences method - baseline at equal seeds, with
          ``all_seeds_better`` and ``all_seeds_worse`` (None where neither direction is good) and ``verdict``:
          "better" or "worse" where the interval excludes 0, "no difference seen" where it does not, "not comparable"
          with fewer than two common seeds or where neither direction is good. The baseline is not in it.

    Raises:
        ValueError: If there are no cells, a method comes twice with one seed, a figure is not finite, or ``level``
            is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level!r}; 0.95 gives 95 % intervals")
    _check_cells(cells)
    figures = _figures(cells)
    base = figures.get(baseline, {})
    others = [method for method in figures if method != baseline] if baseline in figures else []
    return {
        "baseline": baseline,
        "level": level,
        "seeds": sorted({cell["seed"] for cell in cells}),
        "metrics": in_order(name for own in figures.values() for name in own),
        "methods": {
            method: {name: _spread(own[name], level) for name in in_order(own)} for method, own in figures.items()
        },
        "paired": {
            method: {
                name: _paired(get_metric(name), figures[method][name], base.get(name, {}), level)
                for name in in_order(figures[method])
            }
            for method in others
        },
    }


def sentence(summary: Mapping, method: str, metric: str = "probe_cls") -> str:
    """What a summary says about one method and one metric, in one plain sentence.

    Args:
        summary: From :func:`summarise`.
        method: Name of the method.
        metric: Name of the metric.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in summary["methods"]:
        raise ValueError(f"`method` must be one of {list(summary['methods'])}, got {method!r}")
    figure, baseline = summary["methods"][method].get(metric), summary["baseline"]
    kind = get_metric(metric)
    if figure is None:
        return f"{method}: no figure for {kind.title}."
    own = f"{with_half_width(figure, kind)} on {kind.title} ({_seeds(figure['n'])})"
    if method == baseline:
        return f"{method}: the baseline, {own}."
    if baseline not in summary["methods"]:
        return f"{method}: {own}; not compared, there is no {baseline}."
    paired = summary["paired"][method][metric]
    if not paired["n"]:
        return f"{method}: {own}; not compared, {baseline} has no such figure at the same seeds."
    return f"{method}: {_difference(paired, kind, baseline, summary['level'])}."


def with_half_width(figure: Mapping, metric: Metric) -> str:
    """The mean and half the width of its interval, "51.7 ± 1.2"; the mean alone with one seed."""
    if figure["low"] is None:
        return metric.text(figure["mean"])
    return f"{metric.text(figure['mean'])} ± {metric.text((figure['high'] - figure['low']) / 2)}"


def excludes_zero(figure: Mapping) -> bool:
    """Whether there is an interval and 0 is not in it."""
    return figure["low"] is not None and (figure["low"] > 0 or figure["high"] < 0)


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
                    f"`cells` must hold finite figures, got {name} = {value!r} of {key!r}; repeat the run or "
                    "leave it out, None stands for a figure that does not apply"
                )


def _figures(cells: Sequence[Mapping]) -> dict[str, dict[str, dict[int, float]]]:
    """Method -> metric -> seed -> value, without missing ones, seeds ascending."""
    figures: dict[str, dict[str, dict[int, float]]] = {cell["method"]: {} for cell in cells}
    for cell in sorted(cells, key=lambda cell: cell["seed"]):
        for name, value in cell["metrics"].items():
            if value is not None:
                figures[cell["method"]].setdefault(name, {})[cell["seed"]] = value
    return figures


def _spread(by_seed: Mapping[int, float], level: float) -> dict:
    values = list(by_seed.values())
    sd = stdev(values) if len(values) > 1 else None
    # `mean` and `stdev` round once: equal values have a spread of exactly 0, and their mean is exactly theirs.
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
    return f"{signed} beside {baseline} ({ends}) on {metric.title}, where neither direction is good in itself"


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
