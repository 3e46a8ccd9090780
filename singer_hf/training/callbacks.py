"""Callbacks of a distillation: moving average of the student, warm-up of the adapter, epochs of the dataset."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from singer_hf.distillation.distiller import SingerDistiller
from singer_hf.training.arguments import check_warmup


class EmaCallback(TrainerCallback):
    """Keeps an exponential moving average of the student.

    Args:
        student: The student that is trained.
        decay: Share of the average that is kept at each optimiser step, in (0, 1).

    Attributes:
        average: The averaged student, of the student's own class; its integers (position ids) are the student's.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.student, self.decay = student, decay
        self.average = copy.deepcopy(student)

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Moves the average towards the student, all tensors at once and without waiting for the device."""
        self.average.to(next(self.student.parameters()).device)
        pairs = list(zip(_tensors(self.average), _tensors(self.student), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*floating, strict=True)), 1 - self.decay)
        for own, other in pairs:
            if not own.is_floating_point():
                own.copy_(other)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in chain(module.parameters(), module.buffers())]


class AdapterWarmupCallback(TrainerCallback):
    """Gives L_KD the weight 0 in the first steps, in which only the adapter is trained.

    Args:
        distiller: The distiller without wrappers.
        num_steps: Optimiser steps without L_KD.
    """

    def __init__(self, distiller: SingerDistiller, num_steps: int) -> None:
        self.distiller, self.num_steps = distiller, num_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Checks the length of the run, which is known by now also where it is given in epochs."""
        check_warmup(self.num_steps, state.max_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Switches the warm-up on or off, in a resumed run as well."""
        self.distiller.in_adapter_warmup = state.global_step < self.num_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Switches the warm-up off, so that later evaluations include L_KD."""
        self.distiller.in_adapter_warmup = False


class EpochCallback(TrainerCallback):
    """Passes the epoch on to the dataset, so that its random crops differ between epochs.

    accelerate's data loader does this in one process, but not for map-style datasets in several.

    Args:
        dataset: The training dataset; ignored without ``set_epoch``.
    """

    def __init__(self, dataset: object) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Sets the epoch that begins; in a resumed run the current one."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))
