"""A metric over a grid of two settings, as a matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from singer_hf.cards.drawing import FONT, MAP_COLOURS, new_figure, set_title, small_text, wrapped
from singer_hf.comparison.figures.axes import axis_title
from singer_hf.comparison.metric_table import get_metric
from singer_hf.comparison.summary import with_half_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    bar.set_label(wrapped(axis_title(kind), 24), fontsize=FONT)
    set_title(figure, title or f"{kind.title} by {rows[0]} and {columns[0]}")
    return figure


def _readable_on(image: object, value: float) -> str:
    """Black on bright colours and on empty cells, white on dark colours."""
    if value != value:
        return "black"
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
