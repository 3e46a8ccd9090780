"""Distils two students of a small teacher with planted artifacts on drawn scenes: one with FitNet, one with SiNGER.

    singer-hf demo

It downloads nothing and takes a few minutes on two cores.
"""

import os
import sys

import psutil
import torch

from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.data.workers import count_cores
from singer_hf.demo.run import DemoSettings, run_demo

_THREADS = "OMP_NUM_THREADS"
# What accelerate and torchrun set for the processes that they start.
_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
# More threads do not make models as small as the demo's faster.
_MOST_THREADS = 8


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Runs the demo in one process and on one GPU, however many a launcher started.

    Args:
        arguments: The flags; None takes those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    (settings,) = CommandParser(DemoSettings, command="demo", about=__doc__).parse(given)
    if os.environ.get("RANK", "0") != "0":
        return
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    use_idle_cores()
    run_demo(settings)


def use_idle_cores() -> None:
    """Lets torch use the cores that are idle, at least 1 and at most 8, unless the user has set OMP_NUM_THREADS.

    `accelerate launch` and `torchrun` set it to 1 where the user has not. Busy cores are left out, because threads
    that wait for each other make a step several times slower there.
    """
    if not _threads_set_by_user():
        torch.set_num_threads(idle_cores())


def idle_cores(seconds: float = 0.5) -> int:
    """Number of this process's cores that are idle, at least 1 and at most 8.

    Args:
        seconds: Time over which the load is measured.
    """
    idle = 1 - psutil.cpu_percent(seconds) / 100
    return min(max(round(count_cores() * idle), 1), _MOST_THREADS)


def _threads_set_by_user() -> bool:
    launched = any(name in os.environ for name in _LAUNCHERS)
    if os.environ.get(_THREADS, "1") != "1" or not launched:
        return _THREADS in os.environ
    try:
        return _THREADS in psutil.Process().parent().environ()
    except (AttributeError, OSError, psutil.Error):  # the launcher has ended, or its environment cannot be read
        return False
