"""Curves and histograms of an audit as matplotlib figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from singer_hf.cards.drawing import (
    COLOURS,
    FONT,
    legend_below,
    log_ticks,
    new_figure,
    set_title,
    short,
    small_text,
    spread,
)
from singer_hf.inspection.measure.audit_result import AuditResult, BlockAudit
from singer_hf.inspection.report.maps import NORM_UNIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Centring by a norm gives singular values of 0, which a logarithmic axis cannot show.
_SPECTRUM_FLOOR = 1e-4


def norm_histograms(result: AuditResult, blocks: Sequence[int] | None = None, title: str | None = None) -> "Figure":
    """Draws histograms of the patch norms by block on log axes, raw and (after an adapter) refined.

    Args:
        result: The audit.
        blocks: 0-based block indices; the adapter's blocks, or six spread over the depth, by default.
        title: Title of the figure.
    """
    refined = {block.block: block for block in result.refined}
    blocks = (sorted(refined) or spread(len(result.blocks), 6)) if blocks is None else blocks
    columns = min(3, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = new_figure(max(2.5 * columns, 3.4) + 0.4, 1.9 * rows + 0.8)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(blocks) :]:
        axis.set_visible(False)
    for axis, index in zip(axes.flat, blocks, strict=False):
        _draw_histogram(axis, result.blocks[index], COLOURS[0], "raw", filled=True)
        if index in refined:
            _draw_histogram(axis, refined[index], COLOURS[1], "refined", filled=False)
        axis.set(xscale="log", yscale="log")
        log_ticks(axis.xaxis, *_range_of(result))
        log_ticks(axis.yaxis, *axis.get_ylim())
        axis.set_title(f"block {index}", fontsize=FONT)
        axis.tick_params(labelsize=FONT, labelbottom=True)
        axis.grid(alpha=0.25, linewidth=0.5)
    for axis in axes[-1]:
        axis.set_xlabel(NORM_UNIT, fontsize=FONT)
    figure.supylabel("share of patches per bin", fontsize=FONT)
    if refined:
        legend_below(figure, axes.flat[0])
    set_title(figure, title or f"{short(result.name)}: distribution of patch norms")
    return figure


def quantile_curves(results: Sequence[AuditResult], title: str | None = None) -> "Figure":
    """Draws median, 99 % quantile and largest patch norm over depth, one colour per model, on a log axis.

    Args:
        results: Audits of one or several models; refined features appear as crosses at their blocks.
        title: Title of the figure.
    """
    figure = new_figure(6.8, 3.9)
    axis = figure.subplots()
    styles = {"p50": ("-", "median"), "p99": ("--", "99 %"), "max": (":", "max")}
    for number, result in enumerate(results):
        colour = COLOURS[number % len(COLOURS)]
        for key, (style, _) in styles.items():
            values = [block.norm_quantiles[key] for block in result.blocks]
            axis.plot(range(len(values)), values, style, color=colour)
        for block in result.refined:
            values = [block.norm_quantiles[key] for key in styles]
            axis.plot([block.block] * len(values), values, "x", color=colour, markeredgewidth=1.8)
        axis.plot([], [], color=colour, linewidth=5, label=short(result.name))
    for style, label in styles.values():
        axis.plot([], [], style, color="0.3", label=label)
    if any(result.refined for result in results):
        axis.plot([], [], "x", color="0.3", markeredgewidth=1.8, label="refined")
    axis.set(yscale="log", xlabel="block", ylabel=NORM_UNIT)
    log_ticks(axis.yaxis, *axis.get_ylim())
    _plain_axis(axis, max(len(result.blocks) for result in results))
    legend_below(figure, axis)
    set_title(figure, title or "Patch norms over depth")
    return figure


def outlier_shares(result: AuditResult, title: str | None = None) -> "Figure":
    """Draws the outliers' share of the patches, of the KD loss, of its gradient, and of the attention, by block.

    Args:
        result: The audit.
        title: Title of the figure.
    """
    figure = new_figure(6.8, 3.7)
    axis = figure.subplots()
    curves = {
        "of all patches": [block.outlier_share for block in result.blocks],
        "of a plain MSE loss": [block.kd_shares["loss_mean"] for block in result.blocks],
        "of its gradient": [block.kd_shares["gradient_mean"] for block in result.blocks],
        "of the next block's attention": [block.attention_share for block in result.blocks],
    }
    for (label, values), colour, marker in zip(curves.items(), COLOURS, "osv^", strict=False):
        if any(value is not None for value in values):
            points = [float("nan") if value is None else 100 * value for value in values]
            axis.plot(range(len(points)), points, marker=marker, markersize=4, color=colour, label=label)
    axis.set(xlabel="block", ylabel="share of the outliers in %")
    axis.set_ylim(bottom=0, top=max(1.0, 1.05 * axis.get_ylim()[1]))
    _plain_axis(axis, len(result.blocks))
    legend_below(figure, axis)
    set_title(figure, title or f"{short(result.name)}: shares of the outlier patches")
    return figure


def singular_spectrum(singular_values: Sequence[float], r: int, title: str | None = None) -> "Figure":
    """Draws the singular values of the next block in descending order, with the r smallest ones marked.

    Args:
        singular_values: All D singular values, in any order; values below 1e-4 of the largest are drawn at 1e-4.
        r: Rank of the adapter.
        title: Title of the figure.
    """
    values = torch.as_tensor(singular_values, dtype=torch.float64).sort(descending=True).values
    values = values.clamp(min=float(values[0]) * _SPECTRUM_FLOOR)
    figure = new_figure(5.6, 3.4)
    axis = figure.subplots()
    axis.plot(range(1, len(values) + 1), values, color=COLOURS[0])
    axis.axvspan(len(values) - r + 0.5, len(values) + 0.5, color=COLOURS[1], alpha=0.25, label=f"the r = {r} smallest")
    axis.set(yscale="log", xlabel="index, largest first", ylabel="singular value")
    axis.set_xlim(0.5, len(values) + 0.5)
    small_text(axis)
    legend_below(figure, axis)
    set_title(figure, title or "Singular values of the next block")
    return figure


def _draw_histogram(axis: "Axes", block: BlockAudit, colour: str, label: str, *, filled: bool) -> None:
    edges, counts = block.histogram["edges"], block.histogram["counts"]
    shares = [count / sum(counts) for count in counts]
    axis.stairs(shares, edges, color=colour, label=label, fill=filled, alpha=0.55 if filled else 1, linewidth=1.6)


def _range_of(result: AuditResult) -> tuple[float, float]:
    histograms = [block.histogram["edges"] for block in [*result.blocks, *result.refined]]
    return min(edges[0] for edges in histograms), max(edges[-1] for edges in histograms)


def _plain_axis(axis: "Axes", num_blocks: int) -> None:
    axis.set_xticks(spread(num_blocks, 13))
    small_text(axis)
