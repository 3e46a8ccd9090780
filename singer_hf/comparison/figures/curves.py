"""A metric over the training steps, as a matplotlib figure."""

from collections.abc import Iterable, Mapping
from statistics import mean
from typing import TYPE_CHECKING

from singer_hf.baselines.method_table import display_title
from singer_hf.cards.drawing import COLOURS, FONT, new_figure, set_title, small_text
from singer_hf.comparison.figures.axes import LETTER, axis_title, keep_in_percent
from singer_hf.comparison.metric_table import Metric, get_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", ":")
_TABLE_NAMES = {"knn_top1": "knn"}


def curves_figure(cells: Iterable[Mapping], name: str = "knn_top1", title: str = "") -> "Figure":
    """Draws a metric over the training steps for every method, mean over seeds; shares in per cent.

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
    metric, names = _metric(name), [display_title(method) for method in ranked]
    figure = new_figure(5.2 + 0.6 + LETTER * max(map(len, names)), max(3.6, 0.6 + 0.19 * len(ranked)))
    axis = figure.subplots()
    for number, (method, curve) in enumerate(curves.items()):
        colour, style = COLOURS[number % len(COLOURS)], _STYLES[number // len(COLOURS) % len(_STYLES)]
        values = [metric.scale * value for value in curve.values()]
        axis.plot(list(curve), values, style, color=colour, linewidth=1.4, label=method)
    axis.set(xlabel="step", ylabel=axis_title(metric))
    keep_in_percent(axis.yaxis, metric)
    small_text(axis)
    handles = dict(zip(curves, axis.lines, strict=True))
    # In the order of the last points, so that each name is near the end of its line.
    figure.legend(
        [handles[method] for method in ranked], names, loc="outside right center", fontsize=FONT, frameon=False
    )
    set_title(figure, title or f"{metric.title} while training, mean over seeds")
    return figure


def _metric(name: str) -> Metric:
    """The metric of the tables that an evaluation during training has under another name, or the one of this name."""
    return get_metric(_TABLE_NAMES.get(name, name))


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
