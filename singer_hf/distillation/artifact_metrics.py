"""Artifacts in teacher, refined teacher and student, and what the refinement changes in the next block."""

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import outlier_ratio
from singer_hf.distillation.distiller import SingerDistiller
from singer_hf.vit.inference import evaluation_mode


def artifact_metrics(distiller: SingerDistiller, pixel_values: Tensor) -> dict[str, float]:
    """Outlier ratios of teacher, refined teacher and student, and the leakage of the adapter, means over the blocks.

    ``adapter_leakage`` is the relative change of what the next block writes on patch tokens,
    ``‖u(F̂) - u(F)‖ / ‖u(F)‖`` with ``u(x) = block(x) - x``, over the distilled blocks that have a next one.

    Args:
        distiller: The composite; its modes are left as they are.
        pixel_values: Images (B, 3, H, W), normalised for the student.
    """
    with evaluation_mode(distiller):
        raw = distiller.read_teacher(pixel_values)
        refined = distiller.refine(raw)
        student = distiller.student_reader.read(pixel_values)
        measures = _ratios(distiller, raw, refined, student)
        intermediate = [i for i in distiller.teacher_layers if distiller.refines and i + 1 in raw]
        leaks = [_leakage(distiller, i, raw, refined) for i in intermediate]
    if leaks:
        measures["adapter_leakage"] = _mean(leaks)
    return measures


def _ratios(distiller: SingerDistiller, raw: dict, refined: dict, student: dict) -> dict[str, float]:
    prefix, own = distiller.teacher_view.num_prefix_tokens, distiller.student_reader.num_class_tokens
    measures = {"teacher_outlier_ratio": [outlier_ratio(raw[i][:, prefix:]) for i in distiller.teacher_layers]}
    if distiller.refines:
        measures["refined_outlier_ratio"] = [outlier_ratio(refined[i][:, prefix:]) for i in distiller.teacher_layers]
    measures["student_outlier_ratio"] = [outlier_ratio(student[j][:, own:]) for j in distiller.student_layers]
    return {name: _mean(values) for name, values in measures.items()}


def _leakage(distiller: SingerDistiller, block: int, raw: dict[int, Tensor], refined: dict[int, Tensor]) -> Tensor:
    prefix = distiller.teacher_view.num_prefix_tokens
    before = (raw[block + 1] - raw[block])[:, prefix:].float()
    after = (distiller.replay_next(block, refined[block]) - refined[block])[:, prefix:].float()
    return (after - before).norm() / before.norm().clamp(min=1e-12)


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())
