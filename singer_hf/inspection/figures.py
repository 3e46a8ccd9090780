"""Pictures of norms, features and spectra: every function returns a matplotlib figure and writes nothing.

Colours are told apart by readers with any colour vision (Okabe-Ito lines, viridis maps); grids need not be square.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.inspection.results import AuditResult, BlockAudit
from singer_hf.inspection.snapshots import Snapshot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MAP_COLOURS = "viridis"
NORM_UNIT = "L2 norm before the final norm"
_CELL, _FONT, _TITLE_FONT = 1.45, 8, 10


def norm_maps(snapshot: Snapshot, blocks: Sequence[int] | None = None, title: str | None = None) -> "Figure":
    """Patch norms as maps, images x blocks, all on one colour scale; with an adapter the refined maps beside the raw.

    Args:
        snapshot: Features of a few images.
        blocks: 0-based block indices; six spread over the depth by default.
        title: Title of the figure.
    """
    blocks = spread(len(snapshot.norms), 6) if blocks is None else blocks
    columns = [(f"block {i}", snapshot.norms[i]) for i in blocks]
    columns += [(f"block {i}\nrefined", norms) for i, norms in snapshot.refined_norms.items()]
    everything = torch.cat([norms.flatten() for _, norms in columns])
    figure, axes = _panels(len(snapshot.pictures), 1 + len(columns), snapshot.grid, extra_width=0.9)
    scale = _norm_scale(everything)
    for row, picture in enumerate(snapshot.pictures):
        _show_picture(axes[row][0], picture)
        axes[row][0].set_ylabel(f"image {row + 1}", fontsize=_FONT)
        for column, (_, norms) in enumerate(columns, start=1):
            image = axes[row][column].imshow(norms[row].view(snapshot.grid), cmap=MAP_COLOURS, norm=scale)
    for axis, text in zip(axes[0], ["image", *(label for label, _ in columns)], strict=True):
        axis.set_title(text, fontsize=_FONT)
    _colour_bar(figure, image, axes, NORM_UNIT)
    _title(figure, title or f"{short(snapshot.name)}: patch norms")
    return figure


def norm_histograms(result: AuditResult, blocks: Sequence[int] | None = None, title: str | None = None) -> "Figure":
    """Histograms of the patch norms by block on log axes, raw and (behind an adapter) refined.

    Args:
        result: The audit.
        blocks: 0-based block indices; the adapter's blocks, or six spread over the depth, by default.
        title: Title of the figure.
    """
    refined = {block.block: block for block in result.refined}
    blocks = (sorted(refined) or spread(len(result.blocks), 6)) if blocks is None else blocks
    columns = min(3, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = _figure(max(2.5 * columns, 3.4) + 0.4, 1.9 * rows + 0.8)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(blocks) :]:
        axis.set_visible(False)
    for axis, index in zip(axes.flat, blocks, strict=False):
        _draw_histogram(axis, result.blocks[index], COLOURS[0], "raw", filled=True)
        if index in refined:
            _draw_histogram(axis, refined[index], COLOURS[1], "refined", filled=False)
        axis.set(xscale="log", yscale="log")
        _log_ticks(axis.xaxis, *_range_of(result))
        axis.set_title(f"block {index}", fontsize=_FONT)
        axis.tick_params(labelsize=_FONT, labelbottom=True)
        axis.grid(alpha=0.25, linewidth=0.5)
    for axis in axes[-1]:
        axis.set_xlabel(NORM_UNIT, fontsize=_FONT)
    figure.supylabel("share of patches per bin", fontsize=_FONT)
    _legend_below(figure, axes.flat[0]) if refined else None
    _title(figure, title or f"{short(result.name)}: distribution of patch norms")
    return figure


def quantile_curves(results: Sequence[AuditResult], title: str | None = None) -> "Figure":
    """Median, 99 % quantile and largest patch norm over depth, one colour per model, log axis.

    Args:
        results: Audits of one or several models; refined features appear as crosses at their blocks.
        title: Title of the figure.
    """
    figure = _figure(6.8, 3.9)
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
    _log_ticks(axis.yaxis, *axis.get_ylim())
    _plain_axis(axis, max(len(result.blocks) for result in results))
    _legend_below(figure, axis)
    _title(figure, title or "Patch norms over depth")
    return figure


def outlier_shares(result: AuditResult, title: str | None = None) -> "Figure":
    """What the outliers claim, block by block: of the patches, the KD loss, its gradient, and attention.

    Args:
        result: The audit.
        title: Title of the figure.
    """
    figure = _figure(6.8, 3.7)
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
    axis.set(xlabel="block", ylabel="share taken by outliers in %")
    axis.set_ylim(bottom=0, top=max(1.0, 1.05 * axis.get_ylim()[1]))
    _plain_axis(axis, len(result.blocks))
    _legend_below(figure, axis)
    _title(figure, title or f"{short(result.name)}: what the outlier patches claim")
    return figure


def outlier_positions(result: AuditResult, blocks: Sequence[int] | None = None, title: str | None = None) -> "Figure":
    """How often each place of the grid holds an outlier, in per cent of the images, on one colour scale.

    Args:
        result: The audit.
        blocks: 0-based block indices; four spread over those with outliers by default.
        title: Title of the figure.
    """
    if blocks is None:
        hit = [block.block for block in result.blocks if block.outlier_count] or [len(result.blocks) - 1]
        blocks = [hit[i] for i in spread(len(hit), 4)]
    maps = [100 * torch.tensor(result.blocks[i].positions) / result.num_images for i in blocks]
    highest = max(1.0, max(float(values.max()) for values in maps))
    figure, axes = _panels(1, len(blocks), result.grid, cell=1.9, extra_width=0.9)
    for axis, index, values in zip(axes[0], blocks, maps, strict=True):
        image = axis.imshow(values, cmap=MAP_COLOURS, vmin=0, vmax=highest)
        axis.set_title(f"block {index}", fontsize=_FONT)
    _colour_bar(figure, image, axes, "% of images")
    _title(figure, title or f"{short(result.name)}: where outliers sit")
    return figure


def similarity_maps(
    snapshots: Sequence[Snapshot], patch: tuple[int, int], image: int = 0, title: str | None = None
) -> "Figure":
    """Cosine similarity of every patch to a chosen one (red cross), model beside model (paper, figure 2).

    Args:
        snapshots: One per model, of the same images.
        patch: (row, column) on the grid of the first model; other grids show the patch at the same place of the image.
        image: Which of the images.
        title: Title of the figure.

    Raises:
        ValueError: If the patch lies outside the grid.
    """
    rows, columns = snapshots[0].grid
    if not (0 <= patch[0] < rows and 0 <= patch[1] < columns):
        raise ValueError(f"`patch` must lie on the grid of {rows} x {columns} patches, got {patch!r}")
    place = ((patch[0] + 0.5) / rows, (patch[1] + 0.5) / columns)
    entries = [entry for snapshot in snapshots for entry in _features(snapshot)]
    figure, axes = _panels(1, 1 + len(entries), snapshots[0].grid, cell=1.9, extra_width=0.9)
    picture = snapshots[0].pictures[image]
    _show_picture(axes[0][0], picture)
    _cross(axes[0][0], place, tuple(picture.shape[:2]))
    axes[0][0].set_title("image", fontsize=_FONT)
    for axis, (name, features, grid) in zip(axes[0][1:], entries, strict=True):
        chosen = int(place[0] * grid[0]) * grid[1] + int(place[1] * grid[1])
        unit = F.normalize(features[image], dim=-1)
        shown = axis.imshow((unit @ unit[chosen]).view(grid), cmap=MAP_COLOURS, vmin=-1, vmax=1)
        _cross(axis, place, grid)
        axis.set_title(_wrapped(name, 20), fontsize=_FONT)
    _colour_bar(figure, shown, axes, "cosine")
    _title(figure, title or "Similarity to the patch at the red cross, last block")
    return figure


def pca_maps(snapshots: Sequence[Snapshot], title: str | None = None) -> "Figure":
    """The three leading principal components of the patch tokens as red, green, blue: models x images.

    Each row has one basis, fitted to all its images, so that colours can be compared along a row but not between rows.

    Args:
        snapshots: One per model, of the same images; refined features get a row of their own.
        title: Title of the figure.
    """
    entries = [entry for snapshot in snapshots for entry in _features(snapshot)]
    pictures = snapshots[0].pictures
    figure, axes = _panels(1 + len(entries), len(pictures), snapshots[0].grid, extra_width=0.3)
    for axis, picture in zip(axes[0], pictures, strict=True):
        _show_picture(axis, picture)
    for row, (name, features, grid) in zip(axes[1:], entries, strict=True):
        for axis, colours in zip(row, pca_colours(features), strict=True):
            axis.imshow(colours.view(*grid, 3))
        row[0].set_ylabel(_wrapped(short(name, 30), 16), fontsize=_FONT)
    axes[0][0].set_ylabel("image", fontsize=_FONT)
    _title(figure, title or "Patch tokens of the last block: three principal components as colours")
    return figure


def method_rows(
    pictures: Tensor, methods: Mapping[str, tuple[Tensor, tuple[int, int]]], title: str | None = None
) -> "Figure":
    """Teacher, refined teacher and students in rows: norms (left) and principal components (right) of the same images.

    Norms are divided by the median of their image, because absolute norms say nothing across models; one colour scale.

    Args:
        pictures: The images, (K, H, W, 3) in [0, 1].
        methods: Name -> patch tokens (K, N, D) and grid (rows, columns), in the order of the rows.
        title: Title of the figure.
    """
    count, grid = len(pictures), next(iter(methods.values()))[1]
    norms = {name: _relative_norms(features) for name, (features, _) in methods.items()}
    scale = _norm_scale(torch.cat([values.flatten() for values in norms.values()]))
    figure, axes = _panels(1 + len(methods), 2 * count, grid, extra_width=1.1)
    for column, picture in enumerate([*pictures, *pictures]):
        _show_picture(axes[0][column], picture)
        axes[0][column].set_title("norm" if column < count else "components", fontsize=_FONT)
    for row, (name, (features, own_grid)) in zip(axes[1:], methods.items(), strict=True):
        for axis, values in zip(row, norms[name], strict=False):
            shown = axis.imshow(values.view(own_grid), cmap=MAP_COLOURS, norm=scale)
        for axis, colours in zip(row[count:], pca_colours(features), strict=True):
            axis.imshow(colours.view(*own_grid, 3))
        row[0].set_ylabel(_wrapped(short(name, 30), 16), fontsize=_FONT)
    _colour_bar(figure, shown, axes, "norm / median of its image")
    _title(figure, title or "Patch tokens of the last block")
    return figure


def singular_spectrum(singular_values: Sequence[float], r: int, title: str | None = None) -> "Figure":
    """Singular values of what reads the tokens, the most-read direction first, with the r least-read ones marked.

    Args:
        singular_values: All D of them, in any order.
        r: Rank of the adapter.
        title: Title of the figure.
    """
    values = torch.as_tensor(singular_values, dtype=torch.float64).sort(descending=True).values
    values = values.clamp(min=float(values[0]) * 1e-9)
    figure = _figure(5.6, 3.4)
    axis = figure.subplots()
    axis.plot(range(1, len(values) + 1), values, color=COLOURS[0])
    axis.axvspan(
        len(values) - r + 0.5, len(values) + 0.5, color=COLOURS[1], alpha=0.25, label=f"the r = {r} least read"
    )
    axis.set(yscale="log", xlabel="direction, most read first", ylabel="singular value")
    axis.set_xlim(0.5, len(values) + 0.5)
    _small_text(axis)
    _legend_below(figure, axis)
    _title(figure, title or "What the next block reads")
    return figure


def pca_colours(features: Tensor) -> Tensor:
    """Patch tokens (K, N, D) -> colours (K, N, 3) in [0, 1]: the leading components of all of them, 1st-99th percentile."""
    flat = features.flatten(0, 1).double()
    centred = flat - flat.mean(0)
    _, _, basis = torch.linalg.svd(centred.T @ centred, full_matrices=False)
    basis = basis[:3].T
    # The sign of a component is free: the largest entry decides, so that the same features give the same picture.
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    components = centred @ basis
    low, high = torch.quantile(components, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    colours = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colours.view(*features.shape[:2], -1)


def spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of the indices 0..count-1, evenly spread, the last always among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / (limit - 1)) for i in range(limit)})


def short(name: str, limit: int = 34) -> str:
    """A name that fits a title, its middle left out if need be."""
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-(limit // 2) :]}"


def _features(snapshot: Snapshot) -> list[tuple[str, Tensor, tuple[int, int]]]:
    entries = [(short(snapshot.name), snapshot.features, snapshot.grid)]
    if snapshot.refined_features is not None:
        entries.append((f"{short(snapshot.name)} refined", snapshot.refined_features, snapshot.grid))
    return entries


def _relative_norms(features: Tensor) -> Tensor:
    norms = features.norm(dim=-1)
    return norms / norms.median(dim=1, keepdim=True).values.clamp(min=1e-12)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def _panels(
    rows: int, columns: int, grid: tuple[int, int], cell: float = _CELL, extra_width: float = 0.0
) -> tuple["Figure", list]:
    """A figure of equal panels shaped like the grid, without ticks."""
    height = cell * min(max(grid[0] / grid[1], 0.4), 2.5)
    width = max(columns * cell + 0.5 + extra_width, 3.6)
    figure = _figure(width, rows * (height + 0.08) + 0.85)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def _show_picture(axis: "Axes", picture: Tensor) -> None:
    axis.imshow(picture)


def _cross(axis: "Axes", place: tuple[float, float], size: tuple[int, int]) -> None:
    x, y = place[1] * size[1] - 0.5, place[0] * size[0] - 0.5
    for colour, width in (("white", 4), ("red", 2)):
        axis.plot([x], [y], marker="x", markersize=9, markeredgewidth=width, color=colour)


def _norm_scale(values: Tensor) -> object:
    """One colour scale for all maps: logarithmic where the norms span more than a factor of 10."""
    from matplotlib.colors import LogNorm, Normalize

    low, high = float(values.min()), float(values.max())
    positive = float(values[values > 0].min()) if (values > 0).any() else 1.0
    return LogNorm(positive, high, clip=True) if high > 10 * max(low, positive) else Normalize(low, high)


def _colour_bar(figure: "Figure", image: object, axes: object, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=24)
    bar.set_label(label if figure.get_figheight() > 2.6 else _wrapped(label, 16), fontsize=_FONT)
    bar.ax.tick_params(labelsize=_FONT)
    if bar.ax.get_yscale() == "log":
        _log_ticks(bar.ax.yaxis, image.norm.vmin, image.norm.vmax)
    bar.ax.minorticks_off()


def _draw_histogram(axis: "Axes", block: BlockAudit, colour: str, label: str, *, filled: bool) -> None:
    edges, counts = block.histogram["edges"], block.histogram["counts"]
    shares = [count / sum(counts) for count in counts]
    axis.stairs(shares, edges, color=colour, label=label, fill=filled, alpha=0.55 if filled else 1, linewidth=1.6)


def _range_of(result: AuditResult) -> tuple[float, float]:
    histograms = [block.histogram["edges"] for block in [*result.blocks, *result.refined]]
    return min(edges[0] for edges in histograms), max(edges[-1] for edges in histograms)


def _log_ticks(axis: object, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis: 1, 2, 5, 10, ... over a short range, powers of ten over a long one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(max(high, 1e-12) / max(low, 1e-12))
    subs = (1, 2, 5) if decades < 2.2 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12 if decades < 2.2 else 6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _plain_axis(axis: "Axes", num_blocks: int) -> None:
    axis.set_xticks(spread(num_blocks, 13))
    _small_text(axis)


def _small_text(axis: "Axes") -> None:
    axis.tick_params(labelsize=_FONT)
    axis.xaxis.label.set_size(_FONT)
    axis.yaxis.label.set_size(_FONT)
    axis.grid(alpha=0.25, linewidth=0.5)


def _legend_below(figure: "Figure", axis: "Axes") -> None:
    handles, labels = axis.get_legend_handles_labels()
    widest = max(map(len, labels))
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 13 // (widest + 6))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=_FONT, frameon=False)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_long_words=True))


def _title(figure: "Figure", text: str) -> None:
    figure.suptitle(_wrapped(text, int(figure.get_figwidth() * 12)), fontsize=_TITLE_FONT)
