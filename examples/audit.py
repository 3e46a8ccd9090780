"""Audits vision transformers: which patch tokens are high-norm artifacts, where, how strong, and what to do.

    python examples/audit.py --help

How to use it, with examples: the first lines of singer_hf/commands/audit.py.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)  # this folder holds an evaluate.py, which would hide the library of that name

from singer_hf.commands.audit import main

if __name__ == "__main__":
    main()
