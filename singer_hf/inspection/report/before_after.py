"""Norm maps and principal components of a model before and after its cleaning, side by side on one scale."""

from typing import TYPE_CHECKING

import torch

from singer_hf.cards.drawing import FONT, MAP_COLOURS, log_ticks, new_figure
from singer_hf.inspection.measure.snapshots import Snapshot
from singer_hf.inspection.report.maps import pca_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 1.5
_TITLES = ("image", "patch norms", "cleaned", "components", "cleaned")
_SMALLEST_RANGE = (0.5, 4.0)


def before_after_maps(before: Snapshot, after: Snapshot) -> "Figure":
    """Draws a row per image: the image, patch norms after the last block and principal components, before and after.

    Norms are relative to the median of all patches of their model; both columns have one logarithmic scale. The three
    leading principal components (red, green, blue) have one basis and scale, fitted to the cleaned tokens: long
    tokens would determine a basis of their own.

    Args:
        before: Features of the teacher.
        after: Features of the cleaned teacher on the same images.
    """
    from matplotlib.colors import LogNorm

    norms = [snapshot.norms[-1] / snapshot.norms[-1].median() for snapshot in (before, after)]
    scale = LogNorm(_SMALLEST_RANGE[0], max(float(torch.cat(norms).max()), _SMALLEST_RANGE[1]), clip=True)
    colours = [pca_colours(snapshot.features, after.features) for snapshot in (before, after)]
    rows, grid = len(before.images), before.grid
    aspect = grid[0] / grid[1]
    figure = new_figure(5 * _CELL + 1.2, rows * (_CELL * aspect + 0.08) + 0.5)
    axes = figure.subplots(rows, 5, squeeze=False)
    for row, panels in enumerate(axes):
        panels[0].imshow(before.images[row])
        shown = [panels[i + 1].imshow(norms[i][row].view(grid), cmap=MAP_COLOURS, norm=scale) for i in range(2)]
        for i in range(2):
            panels[i + 3].imshow(colours[i][row].view(*grid, 3))
    for axis, title in zip(axes[0], _TITLES, strict=True):
        axis.set_title(title, fontsize=FONT)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(shown[0], ax=axes, fraction=0.04, pad=0.02, aspect=24)
    bar.set_label("norm / median of the model" if rows > 1 else "norm / median", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    log_ticks(bar.ax.yaxis, scale.vmin, scale.vmax)
    bar.ax.minorticks_off()
    return figure
