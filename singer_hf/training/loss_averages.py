"""Running means of the loss components on the device, and the check that they are finite."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState, TrainingArguments

from singer_hf.distillation.feature_distiller import DistillerOutput


class LossAverages:
    """Sums the unweighted loss components of many batches without synchronising the device.

    Attributes:
        num_batches: Number of batches added so far.
    """

    def __init__(self) -> None:
        self.num_batches = 0
        self._names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, outputs: DistillerOutput) -> None:
        """Adds the components of one batch."""
        components = outputs.components
        self._names = tuple(components)
        values = torch.stack([value.detach().float() for value in components.values()])
        self._sum = values if self._sum is None else self._sum + values
        self._count += 1
        self.num_batches += 1

    def pop_means(self, accelerator: Any) -> dict[str, float]:
        """Returns the means over the batches since the last call and over all processes; empty without any batch."""
        if self._sum is None:
            return {}
        means = accelerator.reduce(self._sum / self._count, reduction="mean").tolist()
        self._sum, self._count = None, 0
        return dict(zip(self._names, means, strict=True))


def non_finite_component(outputs: DistillerOutput) -> str | None:
    """Returns the name of the first component (or "loss") that is NaN or infinite; None if all are finite."""
    losses = {**outputs.components, "loss": outputs.loss}
    finite = torch.stack([value.detach().float() for value in losses.values()]).isfinite().tolist()
    return next((name for name, is_finite in zip(losses, finite, strict=True) if not is_finite), None)


def stop_if_not_finite(outputs: DistillerOutput, state: TrainerState, args: TrainingArguments, batch: int) -> None:
    """Ends the run if a loss component is not finite, and writes where into the output folder.

    Args:
        outputs: The losses of a batch.
        state: State of the Trainer.
        args: Arguments of the run.
        batch: Number of the batch in this process, from 0.

    Raises:
        FloatingPointError: If a component is NaN or infinite.
    """
    name = non_finite_component(outputs)
    if name is None:
        return
    step = state.global_step + 1
    report = {"step": step, "epoch": state.epoch, "component": name, "batch": batch}
    file = Path(args.output_dir) / f"non_finite_loss_rank{args.process_index}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    raise FloatingPointError(
        f"`{name}` is not finite at step {step} (batch {batch} of this session); written to {str(file)!r}. Nothing "
        "was saved since the last checkpoint. Lower `learning_rate`, use bf16 instead of fp16, or check the batch"
    )
