"""What is measured while a student is trained: artifacts on both sides, and what the refinement changes."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from singer_hf.distiller import SingerDistiller
from singer_hf.inspection.running import evaluating


class EmaCallback(TrainerCallback):
    """Keeps an exponential running average of the student.

    Args:
        student: The student that is trained.
        decay: Share of the average that is kept at each optimiser step, in (0, 1).

    Attributes:
        average: The averaged student, of the student's own class.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.student = student
        self._averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        # The copy starts as the student; without this the first update would overwrite it with the student.
        self._averaged.n_averaged += 1

    @property
    def average(self) -> nn.Module:
        """The averaged student."""
        return self._averaged.module

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Moves the average towards the student."""
        self._averaged.to(next(self.student.parameters()).device)
        self._averaged.update_parameters(self.student)


class AdapterWarmupCallback(TrainerCallback):
    """Leaves L_KD out of the first steps, in which the adapter alone is trained.

    Args:
        distiller: The composite without wrappers.
        num_steps: Optimiser steps without L_KD.
    """

    def __init__(self, distiller: SingerDistiller, num_steps: int) -> None:
        self.distiller, self.num_steps = distiller, num_steps

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Says whether this step is one of them, in a resumed run as well."""
        self.distiller.warms_up = state.global_step < self.num_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Later evaluations count L_KD."""
        self.distiller.warms_up = False


def outlier_ratio(patch_tokens: Tensor) -> Tensor:
    """99th percentile over median of the L2 norms of an image's patches, mean over images; 1 means no outliers.

    Args:
        patch_tokens: (B, N, D).
    """
    return outlier_ratio_of_norms(patch_tokens.float().norm(dim=-1))


def outlier_ratio_of_norms(norms: Tensor) -> Tensor:
    """:func:`outlier_ratio` of patch norms (B, N)."""
    quantiles = torch.quantile(norms, torch.tensor([0.5, 0.99], device=norms.device), dim=1)
    return (quantiles[1] / quantiles[0].clamp(min=1e-12)).mean()


def artifact_measures(distiller: SingerDistiller, pixel_values: Tensor) -> dict[str, float]:
    """Outlier ratios of teacher, refined teacher and student, and the leakage of the adapter, means over the blocks.

    ``adapter_leakage`` is the relative change of what the next block writes on patch tokens,
    ``‖u(F̂) - u(F)‖ / ‖u(F)‖`` with ``u(x) = block(x) - x``, over the distilled blocks that have a next one.

    Args:
        distiller: The composite; its modes are left as they are.
        pixel_values: Images (B, 3, H, W), normalised for the student.
    """
    with evaluating(distiller):
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


class EpochCallback(TrainerCallback):
    """Tells the dataset which epoch begins, so that its random crops differ between epochs.

    accelerate's loader does so for one process, but not for map-style datasets on several.
    """

    def __init__(self, dataset: object) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Passes on the epoch; in a resumed run the one it stands in."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))
