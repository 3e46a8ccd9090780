"""Figures of a comparison: every function returns a matplotlib figure and saves nothing.

matplotlib is imported inside the functions only, so that the rest of the package works without it.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from singer_hf.cards.drawing import (
    COLOURS,
    FONT,
    MAP_COLOURS,
    legend_below,
    new_figure,
    set_title,
    small_text,
    wrapped,
)
from singer_hf.comparison.metric_table import Metric, get_metric
from singer_hf.comparison.summary import with_half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLAIN = "0.35"
_VERDICT_COLOURS = {"better": COLOURS[0], "worse": COLOURS[1]}
_PANEL, _ROW, _LETTER = 2.1, 0.24, 0.075  # inches: width of a panel, height of a row, width of a letter at FONT
_STYLES = ("-", "--", ":")


def methods_figure(
    summary: Mapping, metrics: Sequence[str] = ("probe_cls", "knn", "outlier_ratio", "gram_clean"), title: str = ""
) -> "Figure":
    """Draws every method with its interval, one panel per metric; the thin line is the mean of the baseline.

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
        axis.set_xlabel(wrapped(_axis_title(metric), 26))
    _name_rows(panels, methods)
    verdicts = [_verdict(summary, method, metric) for method in methods for metric in shown]
    _interval_legend(figure, panels[0], verdicts, summary["baseline"])
    set_title(figure, title or _interval_title("Mean over seeds", summary))
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
        _draw_interval(axis, row, difference, kind, difference["verdict"])
    direction = {True: " (right is better)", False: " (left is better)", None: ""}[kind.higher_is_better]
    axis.set_xlabel(f"difference{f' in{kind.unit}' if kind.unit else ''}{direction}")
    _name_rows([axis], list(found))
    _interval_legend(figure, axis, (difference["verdict"] for difference in found.values()), baseline)
    set_title(figure, title or _interval_title(f"{kind.title}: difference to {baseline} at equal seeds", summary))
    return figure


def curves_figure(cells: Iterable[Mapping], name: str = "knn_top1", title: str = "") -> "Figure":
    """Draws a metric over the training steps for every method, mean over seeds.

    Args:
        cells: The cells of a comparison, with ``"curve": [{"step": int, name: float}, ...]``.
        name: Key of the metric in the points of the curve.
        title: Title of the figure.

    Raises:
        ValueError: If no cell has such a curve.
    """
    curves = _mean_curves(cells, name)
    if not curves:
        raise ValueError(f"`name` must be a key of the points of the cells' `curve`, got {name!r}")
    ranked = sorted(curves, key=lambda method: curves[method][max(curves[method])], reverse=True)
    longest = max(map(len, ranked))
    figure = new_figure(5.2 + 0.6 + _LETTER * longest, max(3.6, 0.6 + 0.19 * len(ranked)))
    axis = figure.subplots()
    for number, (method, curve) in enumerate(curves.items()):
        colour, style = COLOURS[number % len(COLOURS)], _STYLES[number // len(COLOURS) % len(_STYLES)]
        axis.plot(list(curve), list(curve.values()), style, color=colour, linewidth=1.4, label=method)
    axis.set(xlabel="step", ylabel=name)
    small_text(axis)
    handles = dict(zip(curves, axis.lines, strict=True))
    # In the order of the last points, so that each name is near the end of its line.
    figure.legend(
        [handles[method] for method in ranked], ranked, loc="outside right center", fontsize=FONT, frameon=False
    )
    set_title(figure, title or f"{name} while training, mean over seeds")
    return figure


def sweep_figure(
    summary: Mapping,
    grid: Sequence[Sequence[str | None]],
    metric: str = "probe_cls",
    *,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    title: str = "",
) -> "Figure":
    """Draws one metric over a grid of two settings as a map with numbers; brighter is better.

    Args:
        summary: From :func:`singer_hf.comparison.summary.summarise`.
        grid: Names of the methods, row by row; a cell is empty for None and for a method without the metric.
        metric: Name of the metric.
        rows: Name of the setting that changes between rows, and its values.
        columns: The same for the columns.
        title: Title of the figure.

    Raises:
        ValueError: If the size of the grid differs from that of its labels, or no method of it has the metric.
    """
    if [len(line) for line in grid] != [len(columns[1])] * len(rows[1]):
        raise ValueError(
            f"`grid` must have a row for each of {list(rows[1])} and in it a name for each of {list(columns[1])}, "
            f"got rows of length {[len(line) for line in grid]}"
        )
    kind = get_metric(metric)
    found = [[summary["methods"].get(name, {}).get(metric) for name in line] for line in grid]
    if not any(spread for line in found for spread in line):
        raise ValueError(f"`grid` must name methods that have {metric}, got {grid!r}")
    values = [[kind.scale * spread["mean"] if spread else float("nan") for spread in line] for line in found]
    figure = new_figure(1.9 + 0.95 * len(columns[1]), max(2.6, 1.2 + 0.5 * len(rows[1])))
    axis = figure.subplots()
    image = axis.imshow(values, cmap=MAP_COLOURS + "_r" * (kind.higher_is_better is False), aspect="auto")
    for row, line in enumerate(found):
        for column, spread in enumerate(line):
            text = with_half_width(spread, kind) if spread else "-"
            colour = _readable_on(image, values[row][column])
            axis.text(column, row, text, ha="center", va="center", fontsize=FONT, color=colour)
    axis.set(xlabel=columns[0], ylabel=rows[0])
    axis.set_xticks(range(len(columns[1])), columns[1])
    axis.set_yticks(range(len(rows[1])), rows[1])
    small_text(axis)
    axis.grid(visible=False)
    bar = figure.colorbar(image, ax=axis, aspect=24)
    bar.ax.tick_params(labelsize=FONT)
    bar.set_label(wrapped(_axis_title(kind), 24), fontsize=FONT)
    set_title(figure, title or f"{kind.title} by {rows[0]} and {columns[0]}")
    return figure


def _size(methods: Iterable[str], panels: int) -> tuple[float, float]:
    names = list(methods)
    return max(5.4, 0.4 + _LETTER * max(map(len, names)) + _PANEL * panels), 2.0 + _ROW * len(names)


def _verdict(summary: Mapping, method: str, metric: Metric) -> str:
    return summary["paired"].get(method, {}).get(metric.name, {}).get("verdict", "")


def _draw_interval(axis: "Axes", row: int, spread: Mapping | None, metric: Metric, verdict: str) -> None:
    if spread is None:
        return
    colour = _VERDICT_COLOURS.get(verdict, _PLAIN)
    values = [metric.scale * value for value in spread["values"]]
    axis.plot(values, [row + 0.22] * len(values), "o", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
    if spread["low"] is not None:
        axis.hlines(row, metric.scale * spread["low"], metric.scale * spread["high"], color=colour, linewidth=1.6)
    axis.plot([metric.scale * spread["mean"]], [row], "o", color=colour, markersize=4.5)


def _name_rows(panels: Sequence["Axes"], methods: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    for axis in panels:
        axis.xaxis.set_major_locator(MaxNLocator(5))
        small_text(axis)


def _interval_legend(figure: "Figure", axis: "Axes", verdicts: Iterable[str], baseline: str) -> None:
    found = set(verdicts)
    for verdict, colour in _VERDICT_COLOURS.items():
        if verdict in found:
            axis.plot([], [], "o-", color=colour, markersize=4.5, label=f"{verdict} than {baseline} at equal seeds")
    if found - set(_VERDICT_COLOURS):
        axis.plot([], [], "o-", color=_PLAIN, markersize=4.5, label="no difference seen, or not judged")
    axis.plot([], [], "o", color=_PLAIN, alpha=0.35, markersize=3, markeredgewidth=0, label="one seed")
    legend_below(figure, axis)


def _interval_title(text: str, summary: Mapping) -> str:
    return f"{text}, {100 * summary['level']:g}\N{NO-BREAK SPACE}% intervals"


def _axis_title(metric: Metric) -> str:
    return f"{metric.title}{' in %' if metric.percent else ''} {metric.arrow}".strip()


def _mean_curves(cells: Iterable[Mapping], name: str) -> dict[str, dict[int, float]]:
    """Method -> step -> mean over seeds, at the steps that all of its seeds have."""
    by_method: dict[str, list[dict[int, float]]] = {}
    for cell in cells:
        points = {point["step"]: point[name] for point in cell.get("curve") or () if point.get(name) is not None}
        if points:
            by_method.setdefault(cell["method"], []).append(points)
    means = {
        method: {step: mean(curve[step] for curve in curves) for step in sorted(set.intersection(*map(set, curves)))}
        for method, curves in by_method.items()
    }
    return {method: curve for method, curve in means.items() if curve}


def _readable_on(image: object, value: float) -> str:
    """Black on bright colours and on empty cells, white on dark colours."""
    if value != value:
        return "black"
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
