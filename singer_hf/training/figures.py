"""Pictures of a distillation run: the losses over its steps, and norm maps of teacher and students side by side.

matplotlib is imported inside the functions, so that the package works without it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = {
    "loss": "total",
    "kd_loss": "L_KD",
    "outlier_loss": "L_outlier",
    "info_loss": "L_info",
    "generation_loss": "L_gen",
}
# No run has both an outlier and a generation term.
_STYLES = {"loss": "-", "kd_loss": "--", "outlier_loss": "-.", "info_loss": ":", "generation_loss": "-."}


def loss_curves(curve: Sequence[Mapping[str, float]]) -> "Figure":
    """The loss and its unweighted components over the steps, on a logarithmic axis.

    Args:
        curve: Points ``{"step": int, "loss": float, "kd_loss": float, ...}`` in order; a component that
            is 0 everywhere is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [point["step"] for point in curve]
    for name, label in _LABELS.items():
        values = [point.get(name) for point in curve]
        if any(values):
            axes.plot(steps, [value or None for value in values], _STYLES[name], label=label)
    axes.set(
        xlabel="step", ylabel="loss (components unweighted)", yscale="log", title="Losses over the training steps"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def norm_rows(pictures: Tensor, norms: Mapping[str, Tensor]) -> "Figure":
    """A row per image: the picture, then a map of its patch norms for every model, in units of that model's median.

    One colour scale serves all maps, so that a patch of 8 times the median looks the same everywhere.

    Args:
        pictures: Images (R, H, W, 3), values in [0, 1].
        norms: Title of the column -> L2 norms (R, rows, columns) of the patch tokens.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    relative = {name: maps / maps.median() for name, maps in norms.items()}
    highest = max(float(maps.max()) for maps in relative.values())
    scale = LogNorm(vmin=0.5, vmax=max(highest, 4.0))
    rows, columns = len(pictures), len(norms) + 1
    aspect = pictures.shape[1] / pictures.shape[2]
    figure = Figure(figsize=(1.7 * columns + 0.8, 1.7 * aspect * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        grid[row][0].imshow(pictures[row].numpy())
        for axes, maps in zip(grid[row][1:], relative.values(), strict=True):
            shown = axes.imshow(maps[row].numpy(), norm=scale, cmap="viridis", extent=(0, 1, 0, aspect))
    for axes, title in zip(grid[0], ["input", *norms], strict=True):
        axes.set_title(title, fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(shown, ax=grid, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("patch norm / median of the model")
    return figure
