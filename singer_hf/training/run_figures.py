"""Pictures of a run for its folder and card: the losses, and the norms of teacher, refined teacher and student."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from singer_hf.data.pictures import to_pictures
from singer_hf.distillation.distiller import SingerDistiller
from singer_hf.training.figures import loss_curves, norm_rows
from singer_hf.vit.inference import evaluation_mode

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

NUM_PICTURES = 4


def save_run_figures(trainer: "Trainer", folder: str | Path) -> None:
    """Writes ``loss_figure.png`` and ``norm_figure.png`` of what was trained in this process.

    Args:
        trainer: A trainer that has trained; without a single log or batch nothing is written.
        folder: Target folder.
    """
    folder = Path(folder)
    curve = [row for row in trainer.state.log_history if "loss" in row]
    if curve:
        save_figure(lambda: loss_curves(curve), folder / "loss_figure.png")
    images = trainer.last_pixel_values
    if images is not None:
        images = images[:NUM_PICTURES]
        save_figure(
            lambda: norm_rows(to_pictures(images), norm_maps(trainer.distiller, images)), folder / "norm_figure.png"
        )


def save_figure(draw: Callable[[], Any], file: Path) -> None:
    """Draws and writes a figure; without matplotlib says which one is missing and why."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no %s: matplotlib is not installed (pip install 'singer-hf[plots]')", file.name)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(file, dpi=150)


def norm_maps(distiller: SingerDistiller, images: Tensor) -> dict[str, Tensor]:
    """Patch norms (B, rows, columns) behind the last distilled block, by name of the model.

    Args:
        distiller: The composite.
        images: (B, 3, H, W), normalised for the student.
    """
    last, prefix = distiller.teacher_layers[-1], distiller.teacher_view.num_prefix_tokens
    with evaluation_mode(distiller):
        raw = distiller.read_teacher(images)
        tokens = {"teacher": raw[last][:, prefix:]}
        if distiller.refines:
            tokens["refined teacher"] = distiller.refine(raw)[last][:, prefix:]
        student = distiller.student_reader.read(images)[distiller.student_layers[-1]]
    grid = distiller.teacher_input.grid
    maps = {name: x.float().norm(dim=-1).unflatten(1, grid).cpu() for name, x in tokens.items()}
    own = student[:, distiller.student_reader.num_class_tokens :].float().norm(dim=-1)
    return maps | {"student": own.unflatten(1, distiller.student_grids[last]).cpu()}
