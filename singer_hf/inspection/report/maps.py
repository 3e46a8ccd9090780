"""Maps of patch norms and features as matplotlib figures.

The colour maps can be read with any colour vision: viridis, and red to blue for cosines, which have a sign. Grids need
not be square. matplotlib is imported inside functions only, so that the rest of the package works without it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.cards.drawing import (
    FONT,
    MAP_COLOURS,
    SIGNED_COLOURS,
    log_ticks,
    new_figure,
    set_title,
    short,
    spread,
    wrapped,
)
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.snapshots import Snapshot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORM_UNIT = "L2 norm before the final norm"
_CELL = 1.45
# Smallest range of the scale of norms over their median.
_LOWEST_RATIO, _HIGHEST_RATIO = 0.5, 4.0


def norm_maps(snapshot: Snapshot, blocks: Sequence[int] | None = None, title: str | None = None) -> "Figure":
    """Draws patch norms as maps, images x blocks, on one colour scale; refined norms follow the raw ones.

    Args:
        snapshot: Features of a few images.
        blocks: 0-based block indices; six spread over the depth by default.
        title: Title of the figure.
    """
    blocks = spread(len(snapshot.norms), 6) if blocks is None else blocks
    columns = [(f"block {i}", snapshot.norms[i]) for i in blocks]
    columns += [(f"block {i}\nrefined", norms) for i, norms in snapshot.refined_norms.items()]
    everything = torch.cat([norms.flatten() for _, norms in columns])
    figure, axes = _panels(len(snapshot.images), 1 + len(columns), snapshot.grid, extra_width=1.2)
    scale = _norm_scale(everything)
    for row, shown in enumerate(snapshot.images):
        axes[row][0].imshow(shown)
        _label_row(axes[row][0], f"image {row + 1}")
        for column, (_, norms) in enumerate(columns, start=1):
            image = axes[row][column].imshow(norms[row].view(snapshot.grid), cmap=MAP_COLOURS, norm=scale)
    for axis, text in zip(axes[0], ["image", *(label for label, _ in columns)], strict=True):
        axis.set_title(text, fontsize=FONT)
    _colour_bar(figure, image, axes, NORM_UNIT)
    set_title(figure, title or f"{short(snapshot.name)}: patch norms")
    return figure


def relative_norm_maps(snapshots: Sequence[Snapshot], title: str | None = None) -> "Figure":
    """Draws patch norms after the last block relative to the median of the model: models x images, on one scale.

    Norms of different models have different units; relative to the median, 8 times looks the same in all rows.

    Args:
        snapshots: One per model, of the same images; refined norms have their own row.
        title: Title of the figure.
    """
    from matplotlib.colors import LogNorm

    rows = [row for snapshot in snapshots for row in _last_norms(snapshot)]
    relative = [(name, norms / norms.median().clamp(min=1e-12), grid) for name, norms, grid in rows]
    images = snapshots[0].images
    figure, axes = _panels(1 + len(rows), len(images), snapshots[0].grid, extra_width=2.4)
    highest = max(float(norms.max()) for _, norms, _ in relative)
    scale = LogNorm(_LOWEST_RATIO, max(highest, _HIGHEST_RATIO), clip=True)
    for axis, shown in zip(axes[0], images, strict=True):
        axis.imshow(shown)
    for row, (name, norms, grid) in zip(axes[1:], relative, strict=True):
        for axis, values in zip(row, norms, strict=True):
            image = axis.imshow(values.view(grid), cmap=MAP_COLOURS, norm=scale)
        _label_row(row[0], name)
    _label_row(axes[0][0], "image")
    _colour_bar(figure, image, axes, "norm / median of the model")
    set_title(figure, title or "Patch norms after the last block, on one scale")
    return figure


def outlier_positions(result: AuditResult, blocks: Sequence[int] | None = None, title: str | None = None) -> "Figure":
    """Draws how often each grid position has an outlier, in per cent of the images, on one colour scale.

    Args:
        result: The audit.
        blocks: 0-based block indices; by default four of the blocks with many outliers.
        title: Title of the figure.
    """
    if blocks is None:
        most = max(block.outlier_count for block in result.blocks)
        many = [block.block for block in result.blocks if block.outlier_count >= 0.05 * most]
        blocks = [many[i] for i in spread(len(many), 4)]
    maps = [100 * torch.tensor(result.blocks[i].positions) / result.num_images for i in blocks]
    highest = max(1.0, max(float(values.max()) for values in maps))
    figure, axes = _panels(1, len(blocks), result.grid, cell=1.9, extra_width=0.9)
    for axis, index, values in zip(axes[0], blocks, maps, strict=True):
        image = axis.imshow(values, cmap=MAP_COLOURS, vmin=0, vmax=highest)
        axis.set_title(f"block {index}", fontsize=FONT)
    _colour_bar(figure, image, axes, "% of images")
    set_title(figure, title or f"{short(result.name)}: positions of outliers")
    return figure


def similarity_maps(
    snapshots: Sequence[Snapshot], patch: tuple[int, int], image: int = 0, title: str | None = None
) -> "Figure":
    """Draws the cosine similarity of every patch to a chosen one (cross), one map per model (paper, figure 2).

    Args:
        snapshots: One per model, of the same images.
        patch: (row, column) on the grid of the first model; on other grids the patch at the same position.
        image: Index of the image.
        title: Title of the figure.

    Raises:
        ValueError: If the patch is outside of the grid.
    """
    rows, columns = snapshots[0].grid
    if not (0 <= patch[0] < rows and 0 <= patch[1] < columns):
        raise ValueError(f"`patch` must lie on the grid of {rows} x {columns} patches, got {patch!r}")
    place = ((patch[0] + 0.5) / rows, (patch[1] + 0.5) / columns)
    entries = [entry for snapshot in snapshots for entry in _features(snapshot)]
    figure, axes = _panels(1, 1 + len(entries), snapshots[0].grid, cell=1.9, extra_width=0.9)
    chosen_image = snapshots[0].images[image]
    axes[0][0].imshow(chosen_image)
    _cross(axes[0][0], place, tuple(chosen_image.shape[:2]))
    axes[0][0].set_title("image", fontsize=FONT)
    for axis, (name, features, grid) in zip(axes[0][1:], entries, strict=True):
        chosen = int(place[0] * grid[0]) * grid[1] + int(place[1] * grid[1])
        unit = F.normalize(features[image], dim=-1)
        shown = axis.imshow((unit @ unit[chosen]).view(grid), cmap=SIGNED_COLOURS, vmin=-1, vmax=1)
        _cross(axis, place, grid)
        axis.set_title(wrapped(name, 20), fontsize=FONT)
    _colour_bar(figure, shown, axes, "cosine")
    set_title(figure, title or "Cosine to the patch at the cross, last block")
    return figure


def pca_maps(snapshots: Sequence[Snapshot], title: str | None = None) -> "Figure":
    """Draws the three leading principal components of the patch tokens as red, green and blue: models x images.

    Each row has one basis, fitted to all its images, so colours can be compared within a row, but not between rows.

    Args:
        snapshots: One per model, of the same images; refined features have their own row.
        title: Title of the figure.
    """
    entries = [entry for snapshot in snapshots for entry in _features(snapshot)]
    images = snapshots[0].images
    figure, axes = _panels(1 + len(entries), len(images), snapshots[0].grid, extra_width=0.8)
    for axis, shown in zip(axes[0], images, strict=True):
        axis.imshow(shown)
    for row, (name, features, grid) in zip(axes[1:], entries, strict=True):
        for axis, colours in zip(row, pca_colours(features), strict=True):
            axis.imshow(colours.view(*grid, 3))
        _label_row(row[0], name)
    _label_row(axes[0][0], "image")
    set_title(figure, title or "Patch tokens of the last block: three principal components as colours")
    return figure


def pca_colours(features: Tensor, fitted_to: Tensor | None = None) -> Tensor:
    """Returns the three leading principal components of patch tokens as colours.

    Args:
        features: Patch tokens (K, N, D); all K images share one basis.
        fitted_to: Patch tokens (K', N', D) to which basis and scale are fitted. None: ``features``.

    Returns:
        Red, green and blue, (K, N, 3), each scaled from its 1st to its 99th percentile to [0, 1].
    """
    flat = (features if fitted_to is None else fitted_to).flatten(0, 1).double()
    mean = flat.mean(0)
    centred = flat - mean
    # torch.pca_lowrank was ten times slower on 4,000 tokens of width 1024, and inaccurate for flat spectra.
    _, _, basis = torch.linalg.svd(centred.T @ centred, full_matrices=False)
    basis = basis[:3].T
    # The sign of a component is arbitrary: the largest entry is made positive, so that figures are reproducible.
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    low, high = torch.quantile(centred @ basis, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    components = (features.flatten(0, 1).double() - mean) @ basis
    colours = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colours.view(*features.shape[:2], -1)


def _features(snapshot: Snapshot) -> list[tuple[str, Tensor, tuple[int, int]]]:
    entries = [(short(snapshot.name), snapshot.features, snapshot.grid)]
    if snapshot.refined_features is not None:
        entries.append((f"{short(snapshot.name)} refined", snapshot.refined_features, snapshot.grid))
    return entries


def _last_norms(snapshot: Snapshot) -> list[tuple[str, Tensor, tuple[int, int]]]:
    rows = [(short(snapshot.name), snapshot.norms[-1], snapshot.grid)]
    refined = snapshot.refined_norms.get(len(snapshot.norms) - 1)
    return rows if refined is None else [*rows, (f"{short(snapshot.name)} refined", refined, snapshot.grid)]


def _panels(
    rows: int, columns: int, grid: tuple[int, int], cell: float = _CELL, extra_width: float = 0.0
) -> tuple["Figure", list]:
    """Creates a figure of equal panels with the aspect ratio of the grid, without ticks."""
    height = cell * min(max(grid[0] / grid[1], 0.4), 2.5)
    width = max(columns * cell + 0.5 + extra_width, 3.6)
    figure = new_figure(width, rows * (height + 0.08) + 0.85)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def _label_row(axis: "Axes", text: str) -> None:
    # Horizontal, because vertical text does not fit next to the flat panels of wide images.
    axis.set_ylabel(wrapped(short(text, 30), 14), fontsize=FONT, rotation=0, ha="right", va="center")


def _cross(axis: "Axes", place: tuple[float, float], size: tuple[int, int]) -> None:
    x, y = place[1] * size[1] - 0.5, place[0] * size[0] - 0.5
    for colour, width in (("white", 4), ("black", 2)):
        axis.plot([x], [y], marker="x", markersize=9, markeredgewidth=width, color=colour)


def _norm_scale(values: Tensor) -> object:
    """Returns one colour scale for all maps, logarithmic if the norms span more than a factor of 10."""
    from matplotlib.colors import LogNorm, Normalize

    low, high = float(values.min()), float(values.max())
    positive = float(values[values > 0].min()) if (values > 0).any() else 1.0
    return LogNorm(positive, high, clip=True) if high > 10 * max(low, positive) else Normalize(low, high)


def _colour_bar(figure: "Figure", image: object, axes: object, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=24)
    bar.set_label(label if figure.get_figheight() > 2.6 else wrapped(label, 16), fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    if bar.ax.get_yscale() == "log":
        log_ticks(bar.ax.yaxis, image.norm.vmin, image.norm.vmax)
    bar.ax.minorticks_off()
