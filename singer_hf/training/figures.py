"""Figures of a run: the losses over its steps, and norm maps of teacher, refined teacher and student."""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from singer_hf.data.pictures import to_pictures
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.vit.inference import evaluation_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import Trainer

logger = logging.getLogger(__name__)

NUM_FIGURE_IMAGES = 4
_LABELS = {
    "loss": "total",
    "kd_loss": "L_KD",
    "outlier_loss": "L_outlier",
    "info_loss": "L_info",
    "generation_loss": "L_gen",
}
_STYLES = ("-", "--", "-.", ":")


def save_run_figures(trainer: "Trainer", folder: str | Path) -> None:
    """Writes ``loss_figure.png`` and ``norm_figure.png`` for the training in this process.

    Args:
        trainer: A trainer that has trained; without any log or batch nothing is written.
        folder: Target folder.
    """
    folder = Path(folder)
    curve = [row for row in trainer.state.log_history if "loss" in row]
    if curve:
        save_figure(lambda: loss_curves(curve), folder / "loss_figure.png")
    images = trainer.artifact_images.on(trainer.args.device, trainer.last_pixel_values)
    images = trainer.last_pixel_values if images is None else images
    if images is not None:
        images = images[:NUM_FIGURE_IMAGES]
        save_figure(
            lambda: norm_rows(to_pictures(images), norm_maps(trainer.distiller, images)), folder / "norm_figure.png"
        )


def save_figure(draw: Callable[[], Any], file: Path) -> None:
    """Draws and writes a figure; without matplotlib logs a warning instead."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no %s: matplotlib is not installed (pip install 'singer-hf[plots]')", file.name)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(file, dpi=150)


def norm_maps(distiller: FeatureDistiller, images: Tensor) -> dict[str, Tensor]:
    """Computes patch norms (B, rows, columns) after the last distilled block, by name of the model.

    Args:
        distiller: The distiller.
        images: (B, 3, H, W), normalised for the student.
    """
    pair, prefix = distiller.pairs[-1], distiller.teacher_view.num_prefix_tokens
    with evaluation_mode(distiller):
        raw, refined = distiller.teacher_streams(images)
        tokens = {"teacher": raw.outputs[pair.teacher][:, prefix:]}
        if distiller.refiners:
            tokens["refined teacher"] = refined[pair.teacher][:, prefix:]
        student = distiller.student_extractor(images)[pair.student]
    grid = distiller.teacher_input.grid
    maps = {name: x.float().norm(dim=-1).unflatten(1, grid).cpu() for name, x in tokens.items()}
    own = student[:, distiller.student_extractor.num_class_tokens :].float().norm(dim=-1)
    return maps | {"student": own.unflatten(1, pair.grid).cpu()}


def loss_curves(curve: Sequence[Mapping[str, float]]) -> "Figure":
    """Draws the loss and its unweighted components over the steps, on a logarithmic axis.

    Args:
        curve: Points ``{"step": int, "loss": float, "kd_loss": float, ...}`` in order; a component that is 0
            everywhere is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [point["step"] for point in curve]
    names = [name for name in _LABELS if any(point.get(name) for point in curve)]
    for number, name in enumerate(names):
        values = [point.get(name) or None for point in curve]
        axes.plot(steps, values, _STYLES[number % len(_STYLES)], label=_LABELS[name])
    axes.set(
        xlabel="step", ylabel="loss (components unweighted)", yscale="log", title="Losses over the training steps"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def norm_rows(pictures: Tensor, norms: Mapping[str, Tensor]) -> "Figure":
    """Draws a row per image: the image, then a map of its patch norms for every model, relative to the model's median.

    All maps have one colour scale, so that a patch of 8 times the median looks the same everywhere.

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
