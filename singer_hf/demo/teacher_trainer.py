"""The Trainer of a labelled teacher: batches are drawn and mixed on the device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Trainer

from singer_hf.data.endless.scenes import draw_endless_scenes
from singer_hf.demo.mixing import Mixing

Batch = dict[str, Tensor]


class TeacherTrainer(Trainer):
    """A Trainer that prepares every training batch on its device, before the model and outside its compiled graph.

    Args:
        *args: See ``transformers.Trainer``.
        prepare_batch: Makes ``pixel_values`` (B, 3, H, W) and ``labels``, classes (B,) or probabilities (B, K).
        **kwargs: See ``transformers.Trainer``.
    """

    def __init__(self, *args: object, prepare_batch: Callable[[Batch], Batch], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.prepare_batch = prepare_batch

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Scalar loss of a step, see :meth:`transformers.Trainer.training_step`."""
        batch = self.prepare_batch(self._prepare_inputs(inputs))
        return super().training_step(model, batch, num_items_in_batch)


class BatchPreparation:
    """Draws endless scenes where a batch has only their indices, and mixes.

    Args:
        mixing: MixUp and CutMix, or neither.
        scene_seed: Seed of the series of scenes.
        scene_size: Height and width of the scenes in pixels.
    """

    def __init__(self, mixing: Mixing, scene_seed: int = 0, scene_size: int = 224) -> None:
        self.mixing, self.scene_seed, self.scene_size = mixing, scene_seed, scene_size

    def __call__(self, batch: Batch) -> Batch:
        """Returns ``pixel_values`` (B, 3, H, W) from -1 to 1 and ``labels`` (B,) or (B, K) on the device of the batch.

        Args:
            batch: ``index`` (B,), or ``pixel_values`` and ``labels`` (B,).
        """
        if "index" in batch:
            images, labels = draw_endless_scenes(batch["index"], self.scene_seed, self.scene_size)
            pixel_values = images * 2 - 1  # as the image processor of a new classifier
        else:
            pixel_values, labels = batch["pixel_values"], batch["labels"]
        pixel_values, labels = self.mixing(pixel_values, labels)
        return {"pixel_values": pixel_values, "labels": labels}


def collate_indices(rows: list[dict[str, int]]) -> Batch:
    """Returns ``index`` (B,), int64, of rows of :class:`singer_hf.data.endless.rows.SceneIndices`."""
    return {"index": torch.tensor([row["index"] for row in rows])}
