"""Report and folder of a teacher with planted high-norm tokens, shared by both training commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import BaseImageProcessor, PreTrainedModel

from singer_hf.demo.planted_model import norm_lines


def teacher_report(title: str, metrics: Mapping[str, float], blocks: Sequence[Mapping[str, float]]) -> str:
    """Text with the metrics of a teacher and the norms of its patch tokens, one line per block.

    Args:
        title: Start of the first line.
        metrics: Name -> value.
        blocks: From :func:`singer_hf.demo.planted_model.block_norm_statistics`.
    """
    quality = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return "\n".join([f"{title}: {quality}", *norm_lines(list(blocks))])


def save_teacher(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path) -> None:
    """Saves a teacher and its image processor.

    Args:
        model: The teacher.
        processor: Its image processor.
        folder: Target folder; it is created if it does not exist.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
