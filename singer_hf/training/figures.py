"""Figures of a run: the losses over its steps, and norm maps of teacher, refined teacher and student."""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from singer_hf.cards.drawing import COLOURS, MAP_COLOURS, log_ticks, ratio_bar
from singer_hf.data.pictures import to_pictures
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.vit.inference import evaluation_mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import Trainer

logger = logging.getLogger(__name__)

NUM_FIGURE_IMAGES = 4
# Of so many images of the last batch those with the longest patch tokens are drawn.
_CANDIDATES = 32
_LABELS = {
    "kd_loss": "L_KD",
    "outlier_loss": "L_outlier",
    "info_loss": "L_info",
    "generation_loss": "L_gen",
    "relational_loss": "L_relational",
}
_STYLES = ("--", "-.", ":")
# Contributions smaller than this share of the largest loss are not drawn.
_SMALLEST = 1e-4
# Inches: edge of a picture, space between pictures, and around them for titles and the scale.
_CELL, _GAP, _TOP, _RIGHT, _MARGIN = 1.7, 0.08, 0.3, 0.85, 0.08


def save_run_figures(trainer: "Trainer", folder: str | Path) -> None:
    """Writes ``loss_figure.png`` and ``norm_figure.png`` for the training in this process.

    Args:
        trainer: A trainer that has trained; without any log or batch nothing is written.
        folder: Target folder.
    """
    folder = Path(folder)
    curve = [row for row in trainer.state.log_history if "loss" in row]
    if curve:
        weights, start = trainer.distiller.loss_weights, getattr(trainer.args, "adapter_warmup_steps", 0)
        save_figure(lambda: loss_curves(curve, weights, start), folder / "loss_figure.png")
    images = trainer.artifact_images.on(trainer.args.device, trainer.last_pixel_values)
    images = trainer.last_pixel_values if images is None else images
    if images is not None:
        save_figure(lambda: _norm_figure(trainer.distiller, images[:_CANDIDATES]), folder / "norm_figure.png")


def _norm_figure(distiller: FeatureDistiller, images: Tensor) -> "Figure":
    norms = norm_maps(distiller, images)
    chosen = longest_norms(norms["teacher"], NUM_FIGURE_IMAGES)
    return norm_rows(to_pictures(images[chosen]), norms, chosen)


def longest_norms(norms: Tensor, number: int) -> list[int]:
    """Indices of the images with the longest patch tokens, longest first.

    Args:
        norms: L2 norms of the patch tokens (B, rows, columns).
        number: At most this many indices.
    """
    return norms.flatten(1).amax(dim=1).topk(min(number, len(norms))).indices.tolist()


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


def loss_curves(curve: Sequence[Mapping[str, float]], weights: Mapping[str, float], kd_start: int = 0) -> "Figure":
    """Draws what each component adds to the loss over the steps, and their sum, on a logarithmic axis.

    Args:
        curve: Points ``{"step": int, "kd_loss": float, ...}`` in order, the components unweighted.
        weights: Component -> its weight in the loss. A component that adds nothing anywhere is left out.
        kd_start: Last step in which L_KD has weight 0.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [point["step"] for point in curve]
    added = {name: [_contribution(point, name, weights, kd_start) for point in curve] for name in weights}
    added = {name: values for name, values in added.items() if any(values)}
    # None leaves a gap: a logarithmic axis cannot show 0.
    totals = [sum(values[i] for values in added.values()) or None for i in range(len(steps))]
    axes.plot(steps, totals, color=COLOURS[-1], label="loss")
    for number, (name, values) in enumerate(added.items()):
        label = f"{weights[name]:g} \N{MULTIPLICATION SIGN} {_LABELS.get(name, name)}"
        label += " (below the axis)" if max(values) < _SMALLEST * max(filter(None, totals)) else ""
        style = {"linestyle": _STYLES[number % len(_STYLES)], "color": COLOURS[number % len(COLOURS)]}
        axes.plot(steps, [value or None for value in values], label=label, **style)
    axes.set(xlabel="step", ylabel="contribution to the loss", yscale="log")
    axes.set_title("Loss and its weighted components over the training steps")
    _plain_log_axis(axes)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _contribution(point: Mapping[str, float], name: str, weights: Mapping[str, float], kd_start: int) -> float:
    in_warmup = name == "kd_loss" and point["step"] <= kd_start
    return 0.0 if in_warmup else weights[name] * point.get(name, 0.0)


def _plain_log_axis(axes: "Axes") -> None:
    values = [value for line in axes.lines for value in line.get_ydata() if value]
    if values:
        low, high = max(min(values), _SMALLEST * max(values)), max(values)
        axes.set_ylim(low / 1.5, 1.5 * high)
        log_ticks(axes.yaxis, low, high)


def norm_rows(pictures: Tensor, norms: Mapping[str, Tensor], chosen: Sequence[int] | None = None) -> "Figure":
    """Draws a row per image: the image, then a map of its patch norms for every model, relative to the model's median.

    All maps have one colour scale, so that a patch of 8 times the median looks the same everywhere.

    Args:
        pictures: Images (R, H, W, 3), values in [0, 1].
        norms: Title of the column -> L2 norms (B, rows, columns) of the patch tokens, of which the medians are taken.
        chosen: Indices of the R images in ``norms``. None: these are all, B = R.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    chosen = list(range(len(pictures)) if chosen is None else chosen)
    relative = {name: maps[chosen] / maps.median() for name, maps in norms.items()}
    highest = max(float(maps.max()) for maps in relative.values())
    scale = LogNorm(vmin=0.5, vmax=max(highest, 4.0), clip=True)
    rows, columns = len(pictures), len(norms) + 1
    cell = _CELL * pictures.shape[1] / pictures.shape[2]  # height
    width = _MARGIN + columns * (_CELL + _GAP) + _RIGHT
    height = _TOP + rows * (cell + _GAP) + _MARGIN
    figure = Figure(figsize=(width, height))
    for row in range(rows):
        bottom = height - _TOP - row * (cell + _GAP) - cell
        for column, title in enumerate(("input", *norms)):
            left = _MARGIN + column * (_CELL + _GAP)
            axes = figure.add_axes((left / width, bottom / height, _CELL / width, cell / height), xticks=[], yticks=[])
            if column == 0:
                axes.imshow(pictures[row].numpy(), aspect="auto")
            else:
                shown = axes.imshow(relative[title][row].numpy(), norm=scale, cmap=MAP_COLOURS, aspect="auto")
            if row == 0:
                axes.set_title(title, fontsize=10, pad=4)
    left, bottom, top = width - _RIGHT + 0.06, _MARGIN + _GAP, height - _TOP
    ratio_bar(figure, shown, (left / width, bottom / height, 0.14 / width, (top - bottom) / height))
    return figure
