"""SIGTERM and Ctrl-C during a training: a checkpoint at the end of the step, then the end of the process."""

import mmap
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from singer_hf.data.workers import start_method

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context in which the first SIGTERM or SIGINT is only noted; a second one acts as usual.

    Data workers that were forked from this process for a loader of `protect_workers` ignore both signals meanwhile: a
    terminal or a queue sends them to all processes of a run, and the step must be ended.

    Attributes:
        received: Number of the signal that this process got, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._handlers: dict[int, object] = {}
        self._process = os.getpid()
        # Shared with forked workers: whether the training runs.
        self._running = mmap.mmap(-1, 1)
        self._group: dist.ProcessGroup | None = None

    def __enter__(self) -> "StopSignals":
        self.received, self._process, self._running[0] = 0, os.getpid(), 1
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = self._group or dist.new_group(backend="gloo")
        return self

    def __exit__(self, *_: object) -> None:
        self._running[0] = 0
        self._restore()

    def agreed(self) -> int:
        """Returns the signal that any process of the run got, or 0; all processes must call it at the same step."""
        if self._group is None:
            return self.received
        received = torch.tensor(self.received)
        dist.all_reduce(received, op=dist.ReduceOp.MAX, group=self._group)
        return int(received)

    def protect_workers(self, loader: DataLoader) -> DataLoader:
        """Lets the workers of a loader, which it returns, ignore both signals while the training runs.

        The handlers that they inherit are not enough: torch gives each worker its own for SIGTERM, which ends it.
        """
        workers = getattr(loader, "base_dataloader", loader)
        if workers.num_workers and start_method() == "fork":
            workers.worker_init_fn = partial(self._begin_worker, workers.worker_init_fn)
        return loader

    def _begin_worker(self, begin: Callable[[int], None] | None, worker_id: int) -> None:
        if begin is not None:
            begin(worker_id)
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.received = number
            self._restore()
        elif not self._running[0]:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def stop_message(number: int, checkpoint: str) -> str:
    """The line that tells what became of the run.

    Args:
        number: Number of the signal.
        checkpoint: Folder of the saved checkpoint.
    """
    return f"{signal.Signals(number).name}: saved {checkpoint}; the same command with --resume goes on from there"
