"""What the figures of a comparison share: titles and ranges of axes."""

from typing import TYPE_CHECKING

from singer_hf.comparison.metric_table import Metric

if TYPE_CHECKING:
    from matplotlib.axis import Axis

LETTER = 0.075  # inches: width of a letter at FONT


def axis_title(metric: Metric) -> str:
    """Title of a metric's axis, with its unit and its good direction."""
    return f"{metric.title}{' in %' if metric.percent else ''} {metric.arrow}".strip()


def keep_in_percent(axis: "Axis", metric: Metric, lowest: float = 0.0) -> None:
    """Cuts the range of an axis of per cent to what a share can be.

    Args:
        axis: The ``xaxis`` or ``yaxis`` of an ``Axes``.
        metric: Its metric; of one that is no share nothing is cut.
        lowest: 0, or -100 for differences.
    """
    if metric.percent:
        low, high = axis.get_view_interval()
        axis.axes.set(**{f"{axis.axis_name}lim": (max(low, lowest), min(high, 100.0))})
