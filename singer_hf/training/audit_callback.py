"""An audit of a few fixed images during training: metrics in the log, norm maps in the reporting integrations."""

import importlib.util
import io
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from singer_hf.data.pictures import to_pictures
from singer_hf.distillation.student_features import TransformerExtractor
from singer_hf.inspection.measure.audit import outlier_summary
from singer_hf.training.figures import norm_maps, norm_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import Trainer

TAG = "audit/patch_norms"


class AuditCallback(TrainerCallback):
    """Measures the outliers of the student on the same few images at every evaluation and every save.

    The metrics of :func:`singer_hf.inspection.measure.audit.outlier_summary` are logged as ``audit_<name>`` (for
    students that are vision transformers). A figure with the norm maps of teacher, refined teacher and student is sent
    to TensorBoard, Weights & Biases or trackio where one of them is enabled.

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
        images = self.images.to(args.device)
        for run in self.trainer.runs.values():
            if isinstance(run.distiller.student_extractor, TransformerExtractor):
                metrics = outlier_summary(run.distiller.student_extractor.view, images)
                self.trainer.log({f"audit_{name}": value for name, value in run.named(metrics).items()})
            if importlib.util.find_spec("matplotlib") is not None:
                figure = norm_rows(to_pictures(images), norm_maps(run.distiller, images))
                _show(self.trainer, figure, state.global_step, f"{TAG}/{run.name}" if run.name else TAG)


def _show(trainer: "Trainer", figure: "Figure", step: int, tag: str) -> None:
    """Sends a figure to every reporting integration that takes images."""
    for callback in trainer.callback_handler.callbacks:
        if getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_figure(tag, figure, step)
        for name in ("_wandb", "_trackio"):
            library = getattr(callback, name, None)
            if library is not None:
                library.log({tag: library.Image(_picture(figure))})


def _picture(figure: "Figure") -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return Image.open(buffer)
