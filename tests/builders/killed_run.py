"""A run that a signal ends in mid-step: `python tests/builders/killed_run.py OUTPUT_DIR BATCH [SIGNAL]`, BATCH from 1.

SIGKILL reaches this process only, any other signal all of its group, as from a terminal or a queue.
"""

import os
import signal
import subprocess
import sys

from runs import make_resumable
from torch import nn


def signal_self_at(module: nn.Module, call: int, number: int) -> None:
    """Sends the signal between the student's and the teacher's pass of the batch."""
    calls = []

    def send(*_: object) -> None:
        if not module.training:  # a check before a save
            return
        calls.append(1)
        if len(calls) == call:
            target = os.getpid() if number == signal.SIGKILL else -os.getpgrp()
            # Sent by another process: torch's workers treat a signal of their parent in another way.
            subprocess.run(["kill", "-s", str(int(number)), "--", str(target)], start_new_session=True, check=True)

    module.register_forward_pre_hook(send)


if __name__ == "__main__":
    os.setsid()  # the test is of another group
    folder, batch, *name = sys.argv[1:]
    trainer = make_resumable(folder, dataloader_num_workers=2, disable_tqdm=True)
    signal_self_at(trainer.distiller.teacher_input, int(batch), signal.Signals[name[0]] if name else signal.SIGKILL)
    trainer.train()
    trainer.save_model()
