"""Callbacks of a distillation: moving average of the student, warm-up of the adapter, epochs of the dataset."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from singer_hf.distillation.distiller import SingerDistiller
from singer_hf.training.arguments import check_warmup


class EmaCallback(TrainerCallback):
    """Keeps an exponential moving average of the student.

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
