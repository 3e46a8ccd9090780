"""Distils a vision transformer into a small student with SiNGER.

    accelerate launch examples/distill.py --help

How to use it, with examples: the first lines of singer_hf/commands/distill.py.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)  # this folder holds an evaluate.py, which would hide the library of that name

from singer_hf.commands.distill import main

if __name__ == "__main__":
    main()
