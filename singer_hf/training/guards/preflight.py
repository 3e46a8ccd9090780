"""A few timed steps at the start of a run: speed, share of the loader, memory, time to the end, size on disk."""

import math
import os
import time
from collections.abc import Iterable

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Steps that are not timed (start of workers, compilation, caches), and steps that are.
_WARM_UP, _TIMED = 2, 8
# A run of fewer steps needs no outlook.
_LONG = 100
# From this share of the time on, the loader holds the run back.
_LARGE_SHARE = 0.2
# A batch may fill this share of the memory.
_FILLED = 0.8


class Preflight(TrainerCallback):
    """Times the first steps of a run of 100 steps or more and prints what can be expected; ``dry_run`` ends it there.

    Args:
        published: The weights that are saved for others.
        trained: The weights that are trained; a checkpoint also holds two optimiser moments of each.
        dry_run: Whether the run ends after the timed steps, without saving anything.

    Attributes:
        lines: What was printed; empty before.
    """

    def __init__(
        self, published: Iterable[nn.Parameter], trained: Iterable[nn.Parameter], dry_run: bool = False
    ) -> None:
        sizes = [sum(p.numel() * p.element_size() for p in part) for part in (published, trained)]
        self.checkpoint_bytes, self.dry_run = sizes[0] + 3 * sizes[1], dry_run
        self.lines: list[str] = []
        self._first: int | None = None
        self._ended: float | None = None
        self._started: float | None = None
        self._loading: list[float] = []
        self._stepping: list[float] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ends the time of the loader."""
        self._first = state.global_step if self._first is None else self._first
        if self.lines:
            return
        self._started = _now(args)
        if self._is_timed(state.global_step) and self._ended is not None:
            self._loading.append(self._started - self._ended)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ends the time of a step; after the last timed one prints the outlook."""
        if self.lines:
            return
        self._ended = _now(args)
        if self._is_timed(state.global_step - 1):
            self._stepping.append(self._ended - self._started)
        if len(self._stepping) == _TIMED and (self.dry_run or state.max_steps - self._first >= _LONG):
            self.lines = self._outlook(args, state)
            if state.is_world_process_zero:
                print(*self.lines, sep="\n")
        if self.dry_run and (self.lines or state.global_step == state.max_steps):
            control.should_training_stop, control.should_save, control.should_evaluate = True, False, False

    def _is_timed(self, step: int) -> bool:
        return step - self._first >= _WARM_UP

    def _outlook(self, args: TrainingArguments, state: TrainerState) -> list[str]:
        loading, stepping = (sum(times) / len(times) for times in (self._loading, self._stepping))
        images = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        share, left = loading / (loading + stepping), (state.max_steps - state.global_step) * (loading + stepping)
        lines = [
            f"Outlook after {len(self._stepping)} timed steps of {images} images: {images / (loading + stepping):.0f} "
            f"images a second, about {duration(left)} to the end of step {state.max_steps} without evaluations; the "
            f"loader takes {share:.0%} of the time; a checkpoint takes {self.checkpoint_bytes / 2**20:.0f} MiB."
        ]
        if torch.cuda.is_available() and not args.use_cpu:
            used, total = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
            lines += memory_lines(used / 2**30, total / 2**30, args.per_device_train_batch_size)
        return [*lines, *_loader_advice(share, args.dataloader_num_workers)]


def memory_lines(used: float, total: float, batch_size: int) -> list[str]:
    """What is said of the memory of a GPU, with a larger batch size where one fits.

    Args:
        used: Most memory that was in use, in GiB.
        total: Memory of the GPU in GiB.
        batch_size: Images per step and device.
    """
    lines = [f"At most {used:.1f} of {total:.1f} GiB of GPU memory were in use."]
    # The weights do not grow with the batch, so what fits by proportion fits.
    factor = 2 ** int(math.log2(max(1.0, _FILLED * total / used)))
    if factor > 1:
        lines.append(
            f"There is room for `per_device_train_batch_size` {factor * batch_size} (now {batch_size}); the learning "
            "rate is to be chosen anew then."
        )
    return lines


def _loader_advice(share: float, num_workers: int) -> list[str]:
    cores = os.cpu_count() or 1
    if share < _LARGE_SHARE:
        return []
    if num_workers < cores:
        return [f"The loader holds the run back: try `dataloader_num_workers` {cores} (now {num_workers})."]
    return ["The loader holds the run back: use smaller image files, or more CPU cores."]


def duration(seconds: float) -> str:
    """A time in words.

    Args:
        seconds: Number of seconds, at least 0.
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _now(args: TrainingArguments) -> float:
    if torch.cuda.is_available() and not args.use_cpu:
        torch.cuda.synchronize()
    return time.perf_counter()
