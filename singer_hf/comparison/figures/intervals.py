"""Methods with their intervals over seeds, and their differences to the baseline, as matplotlib figures.

Below three seeds there are no intervals: every seed is a point.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from singer_hf.baselines.method_table import display_title
from singer_hf.cards.drawing import COLOURS, legend_below, new_figure, set_title, small_text, wrapped
from singer_hf.comparison.figures.axes import LETTER, axis_title, keep_in_percent
from singer_hf.comparison.metric_table import Metric, get_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLAIN = "0.35"
_VERDICT_COLOURS = {"better": COLOURS[0], "worse": COLOURS[1]}
_PANEL, _ROW = 2.1, 0.24  # inches: width of a panel, height of a row
_FEWEST_SEEDS = 3  # of which an interval is drawn


def methods_figure(
    summary: Mapping, metrics: Sequence[str] = ("probe_cls", "knn", "outlier_ratio", "gram_clean"), title: str = ""
) -> "Figure":
    """Draws every method with its interval or points, one panel per metric; the thin line is the baseline's mean.

    Args:
        summary: From :func:`singer_hf.comparison.summary.summarise`.
        metrics: Names of metrics; those without any value are omitted.
        title: Title of the figure.

    Raises:
        ValueError: If no method has any of the metrics.
    """
    shown = [get_metric(name) for name in metrics if name in summary["metrics"]]
    if not shown:
        raise ValueError(f"`metrics` must name one of {summary['metrics']}, got {tuple(metrics)!r}")
    methods = list(summary["methods"])
    width, height = _size(methods, len(shown))
    figure = new_figure(width, height)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    base = summary["methods"].get(summary["baseline"], {})
    for axis, metric in zip(panels, shown, strict=True):
        for row, (method, own) in enumerate(summary["methods"].items()):
            _draw_interval(axis, row, own.get(metric.name), metric, _verdict(summary, method, metric))
        if metric.name in base:
            axis.axvline(metric.scale * base[metric.name]["mean"], color="0.5", linewidth=0.8, zorder=0)
        axis.set_xlabel(wrapped(axis_title(metric), 26))
        keep_in_percent(axis.xaxis, metric)
    _name_rows(panels, methods)
    drawn = [(method, metric) for method in methods for metric in shown if metric.name in summary["methods"][method]]
    spreads = [summary["methods"][method][metric.name] for method, metric in drawn]
    _interval_legend(figure, panels[0], spreads, [_verdict(summary, *one) for one in drawn], summary["baseline"])
    set_title(figure, title or _interval_title("Methods", spreads, summary))
    return figure


def paired_figure(summary: Mapping, metric: str = "probe_cls", title: str = "") -> "Figure":
    """Draws the differences to the baseline at equal seeds with their intervals.

    Args:
        summary: From :func:`singer_hf.comparison.summary.summarise`.
        metric: Name of the metric.
        title: Title of the figure.

    Raises:
        ValueError: If no method has differences in this metric.
    """
    kind, baseline = get_metric(metric), summary["baseline"]
    found = {method: own[metric] for method, own in summary["paired"].items() if own.get(metric, {"n": 0})["n"]}
    if not found:
        raise ValueError(
            f"`metric` must be one that {baseline} and another method have at equal seeds, got {metric!r}"
        )
    figure = new_figure(*_size(found, 2))
    axis = figure.subplots()
    axis.axvline(0, color="0.5", linewidth=0.8, zorder=0)
    for row, difference in enumerate(found.values()):
        _draw_interval(axis, row, difference, kind, _verdict_of(difference))
    direction = {True: " (right is better)", False: " (left is better)", None: ""}[kind.higher_is_better]
    axis.set_xlabel(f"difference{f' in{kind.unit}' if kind.unit else ''}{direction}")
    keep_in_percent(axis.xaxis, kind, lowest=-100.0)
    _name_rows([axis], list(found))
    spreads = list(found.values())
    _interval_legend(figure, axis, spreads, map(_verdict_of, spreads), baseline)
    text = f"{kind.title}: difference to {display_title(baseline)} at equal seeds"
    set_title(figure, title or _interval_title(text, spreads, summary))
    return figure


def _size(methods: Iterable[str], panels: int) -> tuple[float, float]:
    names = [display_title(name) for name in methods]
    return max(5.4, 0.4 + LETTER * max(map(len, names)) + _PANEL * panels), 2.0 + _ROW * len(names)


def _verdict(summary: Mapping, method: str, metric: Metric) -> str:
    return _verdict_of(summary["paired"].get(method, {}).get(metric.name))


def _verdict_of(difference: Mapping | None) -> str:
    return difference["verdict"] if difference and _has_interval(difference) else ""


def _has_interval(spread: Mapping) -> bool:
    return spread["n"] >= _FEWEST_SEEDS


def _draw_interval(axis: "Axes", row: int, spread: Mapping | None, metric: Metric, verdict: str) -> None:
    if spread is None:
        return
    values = [metric.scale * value for value in spread["values"]]
    if not _has_interval(spread):
        axis.plot(values, [row] * len(values), "o", color=_PLAIN, markersize=3.5, markeredgewidth=0)
        return
    colour = _VERDICT_COLOURS.get(verdict, _PLAIN)
    axis.plot(values, [row + 0.22] * len(values), "o", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
    axis.hlines(row, metric.scale * spread["low"], metric.scale * spread["high"], color=colour, linewidth=1.6)
    axis.plot([metric.scale * spread["mean"]], [row], "o", color=colour, markersize=4.5)


def _name_rows(panels: Sequence["Axes"], methods: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    panels[0].set_yticks(range(len(methods)), [display_title(method) for method in methods])
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    for axis in panels:
        axis.xaxis.set_major_locator(MaxNLocator(5))
        small_text(axis)


def _interval_legend(
    figure: "Figure", axis: "Axes", spreads: Sequence[Mapping], verdicts: Iterable[str], baseline: str
) -> None:
    judged = [verdict for spread, verdict in zip(spreads, verdicts, strict=True) if _has_interval(spread)]
    for verdict, colour in _VERDICT_COLOURS.items():
        if verdict in judged:
            label = f"{verdict} than {display_title(baseline)} at equal seeds"
            axis.plot([], [], "o-", color=colour, markersize=4.5, label=label)
    if set(judged) - set(_VERDICT_COLOURS):
        axis.plot([], [], "o-", color=_PLAIN, markersize=4.5, label="no difference seen, or not judged")
    alpha = 0.35 if judged else 1
    axis.plot([], [], "o", color=_PLAIN, alpha=alpha, markersize=3.5, markeredgewidth=0, label="one seed")
    legend_below(figure, axis)


def _interval_title(text: str, spreads: Sequence[Mapping], summary: Mapping) -> str:
    if not any(map(_has_interval, spreads)):
        return f"{text}, a point for each seed"
    return f"{text}, means over seeds and {100 * summary['level']:g}\N{NO-BREAK SPACE}% intervals"
