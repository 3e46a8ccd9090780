"""Cleans a vision transformer: trains an adapter that removes its high-norm artifact tokens, without a student.

    singer-hf clean --model_name_or_path facebook/dinov2-large --dataset_name path/to/images --output_dir cleaned

The teacher is audited first. The adapter stands behind the block in which its outliers begin, so that all later blocks
read refined tokens; `--layers_to_transform` overrides that. A teacher without artifacts is left alone. Written are the
adapter with its card, report.html with both audits, and checkpoints (`--resume`). Every field of CleaningArguments and
SingerConfig is a flag. On several GPUs: `accelerate launch -m singer_hf clean`, the same flags.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from singer_hf import CleaningArguments, SingerConfig
from singer_hf.cleaning.clean import METHODS, check_untrained, clean
from singer_hf.commands.command_line import CommandParser, expand_file, one_line_errors
from singer_hf.commands.distill_flags import GROUPS as DISTILL_GROUPS
from singer_hf.commands.distill_flags import NO_FLAGS
from singer_hf.data.image_processors import load_image_processor

GROUPS = {
    "Teacher and images": (
        *("model_name_or_path", "dataset_name", "method", "train_split", "image_column", "max_train_samples"),
        *("num_audit_images", "processor_name_or_path", "color_jitter"),
    ),
    "Objective": ("outlier_weight", "outlier_loss", "outlier_quantile", "info_weight", "info_loss", "info_share"),
    "Adapter": DISTILL_GROUPS["Adapter"],
    "Training": (
        *("output_dir", "overwrite_output_dir", "resume", "dry_run", "max_steps", "num_train_epochs"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "bf16"),
        *("dataloader_num_workers", "seed", "use_cpu"),
    ),
    "Logs and upload": (
        *("logging_steps", "report_to", "save_strategy", "save_steps", "save_total_limit", "push_to_hub"),
        *("hub_model_id", "license"),
    ),
}


@dataclass
class CleanSettings:
    """Flags of the command beside those of CleaningArguments and SingerConfig."""

    model_name_or_path: str = field(metadata={"help": "Teacher: Hub id (transformers or timm/) or local folder."})
    dataset_name: str = field(metadata={"help": "Images: Hub id, imagefolder, or folder of parquet or arrow files."})
    method: str = field(default="singer", metadata={"help": f"One of {', '.join(METHODS)}; see docs/cleaning.md."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column with the images. Default: the only image column."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on a seeded subset of this size."})
    num_audit_images: int = field(default=256, metadata={"help": "Images of the audits before and after."})
    processor_name_or_path: str | None = field(
        default=None, metadata={"help": "Image processor. Default: the one saved with the teacher."}
    )
    resume: bool = field(default=False, metadata={"help": "Resume from the last complete checkpoint in output_dir."})


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags or the YAML file and cleans the teacher.

    Args:
        arguments: The flags; None takes those of the process.
    """
    kinds = (CleanSettings, CleaningArguments, SingerConfig)
    parser = CommandParser(*kinds, command="clean", about=__doc__, left_out=NO_FLAGS, groups=GROUPS)
    parser.flags()["layers_to_transform"].help = "0-based blocks with an adapter. Default: chosen by the audit."
    arguments = sys.argv[1:] if arguments is None else arguments
    settings, args, config = parser.parse(arguments)
    of_training = {f.name for kind in kinds[1:] for f in fields(kind)} | {"resume"}
    check_untrained(settings.method, parser.given_names(expand_file(arguments)) & of_training)
    clean(
        settings.model_name_or_path,
        settings.dataset_name,
        config if settings.method == "singer" else None,
        args,
        method=settings.method,
        processor=load_image_processor(settings.processor_name_or_path),
        split=settings.train_split,
        image_column=settings.image_column,
        max_samples=settings.max_train_samples,
        num_audit_images=settings.num_audit_images,
        resume_from_checkpoint=settings.resume or args.resume_from_checkpoint,
    )
    if args.process_index == 0 and Path(args.output_dir, "report.html").is_file():
        print(f"Written to {args.output_dir}; see {Path(args.output_dir, 'report.html')}")
