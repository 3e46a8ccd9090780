"""Compares distillation methods: one student per method and seed, with the same images, order and steps for all.

    python examples/compare.py examples/configs/compare/cifar10_planted.yaml

How to use it, with examples: the first lines of singer_hf/commands/compare.py.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)  # this folder holds an evaluate.py, which would hide the library of that name

from singer_hf.commands.compare import main

if __name__ == "__main__":
    main()
