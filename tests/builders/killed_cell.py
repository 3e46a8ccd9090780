"""A cell that `kill -9` ends in mid-step: `python tests/builders/killed_cell.py STUDY NAME METHOD SEED STEP`."""

import os
import signal
import sys

import torch
from tiny_study import tiny_study

from singer_hf.comparison import cells


def kill_in_step(step: int) -> None:
    """Kills the process between the student's and the teacher's pass of that step."""
    prepare = cells.prepare_trainer

    def prepare_deadly(*args: object, **options: object) -> object:
        trainer = prepare(*args, **options)

        def kill(*_: object) -> None:
            if trainer.distiller.training and trainer.state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.distiller.teacher_input.register_forward_pre_hook(kill)
        return trainer

    cells.prepare_trainer = prepare_deadly


if __name__ == "__main__":
    torch.set_num_threads(1)
    file, name, method, seed, step = sys.argv[1:]
    kill_in_step(int(step))
    cells.run_cell(tiny_study(file, name), method, int(seed), quiet=True)
