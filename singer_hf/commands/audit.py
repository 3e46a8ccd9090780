r"""Audits vision transformers: which patch tokens are high-norm artifacts, where, how strong, and what to do.

    singer-hf audit --model_name_or_path demo-teacher --demo --output_dir audit/
    singer-hf audit --model_name_or_path facebook/dinov2-base --dataset_name photos/ --output_dir audit/
    singer-hf audit --model_name_or_path teacher/ --adapter_name_or_path run/singer --dataset_name photos/ \
        --output_dir audit/
    singer-hf audit --model_name_or_path teacher/ --adapter_name_or_path cleaned/ --inline --dataset_name photos/ \
        --output_dir audit/
    singer-hf audit --model_name_or_path teacher/ fitnet/ run/ --dataset_name photos/ --output_dir audit/

Writes audit.json, figures/*.png and report.html, a self-contained page. Of several models the first is the teacher,
and the others are compared with it. With `--demo` the images are drawn scenes. A YAML file with the same names can
precede or replace the flags.
"""

import sys

from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.inspection.audit_models import run_audit
from singer_hf.inspection.audit_report import prepare_folder
from singer_hf.inspection.inputs import AuditSettings

GROUPS = {
    "Models and images": (
        *("model_name_or_path", "adapter_name_or_path", "inline", "dataset_name", "demo", "dataset_split"),
        *("image_column", "max_samples", "seed", "processor_name_or_path", "image_size"),
    ),
    "Measures": ("mad_factor", "absolute_threshold"),
    "Output and speed": ("output_dir", "num_pictures", "batch_size", "num_workers", "device"),
}


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags or the YAML file, runs the audit, and prints the verdicts.

    Args:
        arguments: The flags; None takes those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    (settings,) = CommandParser(AuditSettings, command="audit", about=__doc__, groups=GROUPS).parse(given)
    prepare_folder(settings.output_dir)
    images = scene_dataset(settings.max_samples, settings.seed) if settings.demo else settings.dataset_name
    report = run_audit(
        settings.model_name_or_path,
        images,
        settings.options(),
        adapter_name_or_path=settings.adapter_name_or_path,
        device=settings.device,
        source=f"drawn scenes, seed {settings.seed}" if settings.demo else None,
    )
    page = report.save(settings.output_dir)
    print(*(verdict.headline for verdict in report.verdicts.values()), f"See {page}", sep="\n")
