"""Compares ways to clean a teacher: one student per method and seed, the same images, order and steps for all.

    python examples/compare.py examples/configs/compare/cifar10_planted.yaml --num_processes 2

Writes comparison.json, comparison.md and figures/*.png into output_dir, and every student into cells/<method>/<seed>.
A comparison that was stopped goes on where it was when the command is repeated; a finished cell is never made again.
Flags win over the file: `--output_dir`, `--seeds 0 1`, `--methods fitnet singer_paper` (some of the file's),
`--max_steps`, and where teacher and data lie: `--teacher_name_or_path`, `--clean_teacher_name_or_path`,
`--dataset_name`.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)  # this folder holds an evaluate.py, which would hide the library of that name

from singer_hf.commands.compare import main

if __name__ == "__main__":
    main()
