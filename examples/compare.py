"""Compares distillation methods: one student per method and seed, with the same images, order and steps for all.

    python examples/compare.py examples/configs/compare/cifar10_planted.yaml --num_processes 2

Writes comparison.json, comparison.md and figures/*.png into `output_dir`, every student into cells/<method>/<seed>.
Repeat the command to resume a comparison that was stopped; finished cells are kept. Flags override the file:
`--output_dir`, `--seeds 0 1`, `--methods fitnet singer_paper` (a selection from the file), `--max_steps`,
`--teacher_name_or_path`, `--clean_teacher_name_or_path`, `--dataset_name`.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)  # this folder holds an evaluate.py, which would hide the library of that name

from singer_hf.commands.compare import main

if __name__ == "__main__":
    main()
