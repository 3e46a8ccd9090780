"""Artifacts in teacher, refined teacher and student, and what the refinement changes in the next block."""

from collections.abc import Mapping

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import outlier_ratio, token_norms
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.tuner.nullspace import relative_change
from singer_hf.vit.features import CapturedFeatures
from singer_hf.vit.inference import evaluation_mode

# Those that do not depend on the student.
TEACHER_METRICS = ("teacher_outlier_ratio", "refined_outlier_ratio", "adapter_leakage")


def artifact_metrics(distiller: FeatureDistiller, pixel_values: Tensor) -> dict[str, float]:
    """Returns the outlier ratios of teacher, refined teacher and student, and the leakage, means over the blocks.

    ``adapter_leakage`` is the relative change of what the next block adds to its patch tokens,
    ``‖u(F̂) - u(F)‖ / ‖u(F)‖`` with ``u(x) = block(x) - x``, over the refined blocks that have a next one. Of adapters
    that are active in the teacher's pass F̂ is what flows on, and F what the bare teacher has.

    Args:
        distiller: The distiller; its modes are left as they are.
        pixel_values: Images (B, 3, H, W), normalised for the student.
    """
    with evaluation_mode(distiller):
        raw, refined = distiller.teacher_streams(pixel_values)
        metrics = _ratios(distiller, raw.outputs, refined, distiller.student_extractor(pixel_values))
        leaks = [_leakage(distiller, i, raw, refined[i]) for i in distiller.refiners if i + 1 in raw.outputs]
    if leaks:
        metrics["adapter_leakage"] = _mean(leaks)
    return metrics


def _ratios(
    distiller: FeatureDistiller, raw: Mapping[int, Tensor], refined: Mapping[int, Tensor], student: dict[int, Tensor]
) -> dict[str, float]:
    prefix, own = distiller.teacher_view.num_prefix_tokens, distiller.student_extractor.num_class_tokens
    metrics = {"teacher_outlier_ratio": [_outlier_ratio(raw[i][:, prefix:]) for i in distiller.teacher_layers]}
    if distiller.refiners:
        metrics["refined_outlier_ratio"] = [_outlier_ratio(refined[i][:, prefix:]) for i in distiller.teacher_layers]
    metrics["student_outlier_ratio"] = [_outlier_ratio(student[j][:, own:]) for j in distiller.student_layers]
    return {name: _mean(values) for name, values in metrics.items()}


def _outlier_ratio(patch_tokens: Tensor) -> Tensor:
    return outlier_ratio(token_norms(patch_tokens))


def _leakage(distiller: FeatureDistiller, block: int, raw: CapturedFeatures, refined: Tensor) -> Tensor:
    prefix = distiller.teacher_view.num_prefix_tokens
    before = (raw.outputs[block + 1] - raw.outputs[block])[:, prefix:].float()
    after = (distiller.replay_next(block, refined, raw) - refined)[:, prefix:].float()
    return relative_change(before, after)


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())
