"""A log of high-norm tokens that grow while a classifier is trained."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from singer_hf.artifacts.outliers import outlier_ratio, sigma_outliers, token_norms
from singer_hf.cards.drawing import COLOURS, new_figure, set_title, small_text
from singer_hf.vit.features import capture_features
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.structure import view_vit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("patches_last", "ratio_last", "patches_most", "ratio_most", "block_most")
_PREFIX = "artifacts_"
_BATCH = 64


class ArtifactLog(TrainerCallback):
    """Logs :func:`measure_artifacts` of fixed images every few steps and after the last one.

    The values are logged as ``artifacts_<name>`` with the number of image views so far as ``image_views``, so they are
    in ``log_history``, in checkpoints and in TensorBoard.

    Args:
        trainer: The trainer it is added to.
        model: The vision transformer that is trained.
        images: Held-out images (B, 3, H, W), normalised for the model.
        every: Number of steps between two measurements, at least 1.
    """

    def __init__(self, trainer: Trainer, model: nn.Module, images: Tensor, every: int) -> None:
        self.trainer, self.model, self.images, self.every = trainer, model, images, every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Measures at every ``every``-th step and at the last one, in the main process."""
        if state.is_world_process_zero and (
            state.global_step % self.every == 0 or state.global_step == state.max_steps
        ):
            values = measure_artifacts(self.model, self.images.to(args.device))
            views = state.global_step * views_per_step(args)
            due = control.should_log  # logging turns it off, and with it the loss of this step
            self.trainer.log({"image_views": views} | {_PREFIX + name: value for name, value in values.items()})
            control.should_log = due


def views_per_step(args: TrainingArguments) -> int:
    """Number of images of an optimiser step over all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def measure_artifacts(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Measures the high-norm patch tokens after the last block and after the block that has the most.

    Args:
        model: Any vision transformer.
        images: Images (B, 3, H, W), normalised for it, on its device.

    Returns:
        ``patches_last`` and ``patches_most``, patches per image above mean + 4 standard deviations
        (:func:`singer_hf.artifacts.outliers.sigma_outliers`); ``ratio_last`` and ``ratio_most``, 99th percentile over
        median (:func:`singer_hf.artifacts.outliers.outlier_ratio`); ``block_most``, the index of that block.
    """
    view, norms = view_vit(model), []
    with evaluation_mode(model):
        for batch in images.split(_BATCH):
            features = capture_features(model, batch, range(view.num_blocks))
            norms.append(torch.stack([token_norms(x[:, view.num_prefix_tokens :]) for x in features.values()]))
    return artifact_values(torch.cat(norms, dim=1))


def artifact_values(norms: Tensor) -> dict[str, float]:
    """Returns the values of :func:`measure_artifacts` from patch norms of all blocks, (L, B, N), float32."""
    patches = [float(sigma_outliers(block)) for block in norms]
    most = max(range(len(patches)), key=lambda index: (patches[index], index))  # the last one of equals
    values = (patches[-1], float(outlier_ratio(norms[-1])), patches[most], float(outlier_ratio(norms[most])), most)
    return dict(zip(NAMES, values, strict=True))


def artifact_rows(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Returns the measurements in a trainer's log: ``step``, ``image_views`` and the values, in order of steps."""
    rows = {row["step"]: row for row in log_history if _PREFIX + NAMES[0] in row}
    return [
        {"step": step, "image_views": row["image_views"]} | {name: row[_PREFIX + name] for name in NAMES}
        for step, row in sorted(rows.items())
    ]


def artifact_figure(rows: list[dict[str, float]], title: str) -> "Figure":
    """Draws outlier patches per image and p99/median over the number of image views.

    Args:
        rows: From :func:`artifact_rows`.
        title: Title of the figure.
    """
    figure = new_figure(8, 3.4)
    views = [row["image_views"] / 1e6 for row in rows]
    labels = {"patches": "patches above mean + 4σ per image", "ratio": "p99/median"}
    axes = figure.subplots(1, len(labels))
    for axis, (kind, label) in zip(axes, labels.items(), strict=True):
        for colour, (place, name) in enumerate((("last", "last block"), ("most", "block with the most"))):
            axis.plot(views, [row[f"{kind}_{place}"] for row in rows], ".-", color=COLOURS[colour], label=name)
        axis.set(xlabel="image views (millions)", ylabel=label)
        small_text(axis)
    axes[0].legend(fontsize=8, frameon=False)
    set_title(figure, title)
    return figure
