"""A run that `kill -9` ends in mid-step: `python tests/builders/killed_run.py OUTPUT_DIR BATCH`, BATCH from 1."""

import os
import signal
import sys

from runs import make_resumable
from torch import nn


def kill_self_at(module: nn.Module, call: int) -> None:
    """Kills the process between the student's and the teacher's pass of the batch."""
    calls = []

    def kill(*_: object) -> None:
        calls.extend([1] if module.training else [])  # checks before a save run in evaluation mode
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    module.register_forward_pre_hook(kill)


if __name__ == "__main__":
    trainer = make_resumable(sys.argv[1], dataloader_num_workers=2)
    kill_self_at(trainer.distiller.teacher_input, int(sys.argv[2]))
    trainer.train()
