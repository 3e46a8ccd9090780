"""Checks that losses and weights are finite, without a synchronisation of the device in every batch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainingArguments

from singer_hf.distillation.adapter.cleaner import TeacherCleaner
from singer_hf.distillation.feature_distiller import DistillerOutput, FeatureDistiller
from singer_hf.vit.inference import evaluation_mode

if TYPE_CHECKING:
    from singer_hf.training.students.student_run import StudentRun

_NEVER = torch.iinfo(torch.int64).max
_ADVICE = "Nothing was saved since the last checkpoint. Lower `learning_rate`, use bf16 instead of fp16, or check the "


class FiniteGuard:
    """Ends a run whose losses or weights are not finite.

    For every loss component the number of its first batch that is not finite stays on the device; it is read at logs
    and before a save.

    Args:
        args: The training arguments.

    Attributes:
        num_batches: Number of batches so far.
        error: The message of the error that ended the run.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.args, self.num_batches, self.error = args, 0, None
        self._names: tuple[str, ...] = ()
        self._first: Tensor | None = None
        self._places: list[tuple[int, float | None]] = []

    def add(self, outputs: DistillerOutput, step: int, epoch: float | None) -> None:
        """Notes the losses of a batch.

        Args:
            outputs: The losses.
            step: The optimiser step it belongs to, from 1.
            epoch: The epoch.
        """
        losses = {**outputs.components, "loss": outputs.loss}
        self._names, self.num_batches = tuple(losses), self.num_batches + 1
        self._places.append((step, epoch))
        values = torch.stack([value.detach().float() for value in losses.values()])
        first = torch.where(values.isfinite(), _NEVER, self.num_batches)
        self._first = first if self._first is None else torch.minimum(self._first, first)

    def check_losses(self, accelerator: Any) -> None:
        """Ends the run in all processes if a loss component of any was not finite since the last check.

        Raises:
            FloatingPointError: If one was.
        """
        if self._first is None:
            return
        by_process = accelerator.gather(self._first[None]).tolist()
        batch, index, rank = min((b, i, rank) for rank, row in enumerate(by_process) for i, b in enumerate(row))
        start = self.num_batches - len(self._places) + 1
        places, self._first, self._places = self._places, None, []
        if batch < _NEVER:
            step, epoch = places[batch - start]
            place = {"step": step, "epoch": epoch, "component": self._names[index], "batch": batch, "process": rank}
            self._stop(place, f"step {step} (batch {batch} of this session)", "batch")

    def check_weights(
        self, distiller: FeatureDistiller, tensors: Mapping[str, Tensor], images: Tensor | None, step: int
    ) -> None:
        """Ends the run if weights to be saved are not finite, or give a loss that is not.

        Args:
            distiller: The distiller.
            tensors: What will be saved, any shapes, by name.
            images: Images (B, 3, H, W) for the loss. None: the loss is not computed.
            step: The number of steps made.

        Raises:
            FloatingPointError: If a value is not finite.
        """
        name = first_non_finite(tensors)
        if name is None and images is not None:
            name = _non_finite_loss(distiller, images)
        if name is not None:
            self._stop({"step": step, "component": name}, f"the end of step {step}", "images")

    def check_error(self) -> None:
        """Refuses to save anything of a run that was ended.

        Raises:
            FloatingPointError: If it was.
        """
        if self.error:
            raise FloatingPointError(self.error)

    def _stop(self, report: dict[str, Any], place: str, last_word: str) -> None:
        file = Path(self.args.output_dir) / f"non_finite_loss_rank{self.args.process_index}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        name = report["component"]
        self.error = f"`{name}` is not finite at {place}; written to {str(file)!r}. {_ADVICE}{last_word}"
        raise FloatingPointError(self.error)


def saved_tensors(trained: nn.Module, runs: Iterable["StudentRun"], optimizer: Any = None) -> dict[str, Tensor]:
    """What a checkpoint holds, tensors (...) by name: trained weights, buffers, averages, optimiser's state.

    Args:
        trained: The module that is trained.
        runs: Its students with their moving averages.
        optimizer: The optimiser, if there is one yet.
    """
    tensors = _trained_tensors(trained, optimizer)
    for run in runs:
        own = f"{run.name}_" if run.name else ""
        tensors |= {f"{own}student.{name}": value for name, value in run.distiller.student.named_buffers()}
        if run.average is not None:
            tensors |= {f"{own}average.{name}": value for name, value in run.average.state_dict().items()}
    return tensors


def adapter_tensors(cleaner: TeacherCleaner, optimizer: Any = None) -> dict[str, Tensor]:
    """What a checkpoint of adapters holds, tensors (...) by name: weights, statistics of gates, optimiser's state.

    Args:
        cleaner: The cleaner.
        optimizer: The optimiser, if there is one yet.
    """
    gates = {
        f"singer_gate.{block}.{name}": value
        for block, layer in cleaner.layers.items()
        for name, value in layer.singer_gate.named_buffers()
    }
    return _trained_tensors(cleaner, optimizer) | gates


def _trained_tensors(module: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    tensors = {name: value for name, value in module.named_parameters() if value.requires_grad}
    states = {} if optimizer is None else optimizer.state
    for number, state in enumerate(states.values()):
        tensors |= {f"optimizer.{name}.{number}": value for name, value in state.items() if torch.is_tensor(value)}
    return tensors


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor, of shape (...), with a value that is NaN or infinite, or None."""
    floating = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    local = {name: getattr(value, "to_local", lambda v=value: v)().detach() for name, value in floating.items()}
    local = {name: value for name, value in local.items() if value.numel()}
    # The largest absolute value of all, in a few fused kernels and one synchronisation.
    if not local or get_total_norm(list(local.values()), norm_type=float("inf")).isfinite():
        return None
    return next((name for name, value in local.items() if not value.isfinite().all()), None)


def non_finite_component(outputs: DistillerOutput) -> str | None:
    """Returns the name of the first component (or "loss") that is NaN or infinite; None if all are finite."""
    losses = {**outputs.components, "loss": outputs.loss}
    finite = torch.stack([value.detach().float() for value in losses.values()]).isfinite().tolist()
    return next((name for name, is_finite in zip(losses, finite, strict=True) if not is_finite), None)


@torch.no_grad()
def _non_finite_loss(distiller: FeatureDistiller, images: Tensor) -> str | None:
    """The first loss component that is not finite with the updated weights; huge weights are finite themselves."""
    with evaluation_mode(distiller):
        return non_finite_component(distiller(images))
