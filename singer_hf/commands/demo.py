"""Distils two students of a small teacher with planted artifacts on drawn scenes: one with FitNet, one with SiNGER.

    singer-hf demo

It downloads nothing and takes a few minutes on two cores.
"""

import os
import sys

from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.demo.run import DemoSettings, run_demo


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
    run_demo(settings)
