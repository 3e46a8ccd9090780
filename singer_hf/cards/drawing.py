"""Helpers for figures: size, axes, legends, titles. matplotlib is imported inside the functions."""

import math
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

MAP_COLOURS = "viridis"

# For quantities with a sign, such as cosines: white is 0.
SIGNED_COLOURS = "RdBu_r"

FONT = 8

_TITLE_FONT = 10
_RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches, without a window and outside pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def log_ticks(axis: object, low: float, high: float) -> None:
    """Sets plain numbers as ticks of a logarithmic axis: 1, 2, 5, ... over a short range, else powers of ten.

    Args:
        axis: The ``xaxis`` or ``yaxis`` of an ``Axes``.
        low: Smallest value on it.
        high: Largest value on it.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(max(high, 1e-12) / max(low, 1e-12))
    subs = (1, 2, 5) if decades < 2.2 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12 if decades < 2.2 else 6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def ratio_bar(figure: "Figure", image: object, place: tuple[float, float, float, float]) -> None:
    """Adds the colour scale of norms over the median of their model, with plain numbers: 1x, 3x, 10x.

    Args:
        figure: The figure.
        image: What ``imshow`` returned, with a logarithmic scale.
        place: (left, bottom, width, height) of the scale in shares of the figure.
    """
    bar = figure.colorbar(image, cax=figure.add_axes(place))
    ticks = [tick for tick in _RATIOS if image.norm.vmin <= tick <= image.norm.vmax]
    bar.set_ticks(ticks, labels=[f"{tick:g}\N{MULTIPLICATION SIGN}" for tick in ticks], fontsize=FONT)
    bar.ax.minorticks_off()
    high = place[3] * figure.get_figheight() > 2.2
    bar.set_label("patch norm / median of the model" if high else "norm / median", fontsize=FONT)


def legend_below(figure: "Figure", axis: "Axes") -> None:
    """Puts the legend of ``axis`` under the figure, in as many columns as fit."""
    handles, labels = axis.get_legend_handles_labels()
    widest = max(map(len, labels))
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 13 // (widest + 6))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=FONT, frameon=False)


def small_text(axis: "Axes") -> None:
    """Sets tick and axis labels to ``FONT`` and adds a light grid."""
    axis.tick_params(labelsize=FONT)
    axis.xaxis.label.set_size(FONT)
    axis.yaxis.label.set_size(FONT)
    axis.grid(alpha=0.25, linewidth=0.5)


def set_title(figure: "Figure", text: str) -> None:
    """Sets the title of the figure, wrapped to its width."""
    figure.suptitle(wrapped(text, int(figure.get_figwidth() * 12)), fontsize=_TITLE_FONT)


def spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of the indices 0..count-1, evenly spaced, always including the last."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / (limit - 1)) for i in range(limit)})


def short(name: str, limit: int = 34) -> str:
    """``name`` with its middle replaced by an ellipsis if it is longer than ``limit``."""
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-(limit // 2) :]}"


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most ``width`` characters."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=True))
