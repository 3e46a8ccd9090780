"""Audits vision transformers: which patch tokens are high-norm artifacts, where, how strong, and what to do.

    python examples/audit.py --model_name_or_path examples/demo_teacher --output_dir audit/
    python examples/audit.py --model_name_or_path facebook/dinov2-base --dataset_name photos/ --output_dir audit/
    python examples/audit.py --model_name_or_path teacher/ --adapter_name_or_path run/singer --output_dir audit/
    python examples/audit.py --model_name_or_path teacher/ fitnet/ run/ --dataset_name photos/ --output_dir audit/

Writes audit.json, figures/*.png and report.html, a self-contained page. Of several models the first is the teacher,
and the others are compared with it. Without `--dataset_name` the images are drawn scenes. A YAML file with the same
names can precede or replace the flags.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)  # this folder holds an evaluate.py, which would hide the library of that name

from singer_hf.commands.audit import main

if __name__ == "__main__":
    main()
