"""Audits vision transformers: which patch tokens are high-norm artifacts, where, how strong, and what to do.

    python examples/audit.py --model_name_or_path examples/demo_teacher --output_dir audit/
    python examples/audit.py --model_name_or_path facebook/dinov2-base --dataset_name photos/ --output_dir audit/
    python examples/audit.py --model_name_or_path teacher/ --adapter_name_or_path run/singer --output_dir audit/
    python examples/audit.py --model_name_or_path teacher/ fitnet/ run/ --dataset_name photos/ --output_dir audit/

Writes audit.json, figures/*.png and report.html, a self-contained page. Of several models the first is the teacher,
and the others are compared with it. Without `--dataset_name` the images are drawn scenes. A YAML file with the same
names can replace the flags.
"""

import sys
from pathlib import Path

from transformers import HfArgumentParser

from singer_hf.inspection.inputs import AuditSettings
from singer_hf.inspection.run import run_audit


def main() -> None:
    """Parses the flags or the YAML file, runs the audit, and prints the verdicts."""
    parser = HfArgumentParser(AuditSettings)
    if len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml")):
        (settings,) = parser.parse_yaml_file(sys.argv[1])
    else:
        (settings,) = parser.parse_args_into_dataclasses()
    try:
        headlines = run_audit(settings)
    except (ValueError, FileNotFoundError, MemoryError) as error:
        sys.exit(f"error: {error}")
    print(*headlines, f"See {Path(settings.output_dir) / 'report.html'}", sep="\n")
