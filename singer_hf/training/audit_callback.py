"""An audit of a few fixed images while a student is trained: scalars in the log, norm maps where pictures can go."""

import importlib.util
import io
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from singer_hf.data.pictures import to_pictures
from singer_hf.distillation.student_features import TransformerStudent
from singer_hf.inspection.measure.audit import outlier_summary
from singer_hf.training.figures import norm_rows
from singer_hf.training.run_figures import norm_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import Trainer

TAG = "audit/patch_norms"


class AuditCallback(TrainerCallback):
    """At every evaluation and every save, measures the outliers of the student on the same few images.

    The scalars of :func:`singer_hf.inspection.measure.audit.outlier_summary` go into the log as ``audit_<name>`` (of students
    that are vision transformers), and a figure with the norm maps of teacher, refined teacher and student goes to
    TensorBoard, Weights & Biases or trackio where one of them is on.

    Args:
        trainer: The trainer it is added to: ``trainer.add_callback(AuditCallback(trainer, images))``.
        images: Pixel values (B, 3, H, W), normalised for the student; a handful is enough.

    Raises:
        ValueError: If there are no images.
    """

    def __init__(self, trainer: "Trainer", images: Tensor) -> None:
        if images.ndim != 4 or not len(images):
            raise ValueError(
                f"`images` must be pixel values (B, 3, H, W) with B >= 1, got shape {tuple(images.shape)}"
            )
        self.trainer, self.images = trainer, images
        self._last_step: int | None = None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Audits after an evaluation."""
        self._audit(args, state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Audits after a checkpoint, unless an evaluation at the same step already did."""
        self._audit(args, state)

    def _audit(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.global_step == self._last_step or not state.is_world_process_zero:
            return
        self._last_step = state.global_step
        distiller, images = self.trainer.distiller, self.images.to(args.device)
        if isinstance(distiller.student_reader, TransformerStudent):
            figures = outlier_summary(distiller.student_reader.view, images)
            self.trainer.log({f"audit_{name}": value for name, value in figures.items()})
        if importlib.util.find_spec("matplotlib") is not None:
            _show(self.trainer, norm_rows(to_pictures(images), norm_maps(distiller, images)), state.global_step)


def _show(trainer: "Trainer", figure: "Figure", step: int) -> None:
    """Hands a figure to every reporting integration that takes pictures."""
    for callback in trainer.callback_handler.callbacks:
        if getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_figure(TAG, figure, step)
        for name in ("_wandb", "_trackio"):
            library = getattr(callback, name, None)
            if library is not None:
                library.log({TAG: library.Image(_picture(figure))})


def _picture(figure: "Figure") -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return Image.open(buffer)
