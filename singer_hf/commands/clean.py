"""Cleans a vision transformer: trains an adapter that removes its high-norm artifact tokens, without a student.

    singer-hf clean --model_name_or_path facebook/dinov2-large --dataset_name path/to/images --output_dir cleaned

The teacher is audited first. The adapter stands behind the block in which its outliers begin, so that all later blocks
read refined tokens; `--layers_to_transform` overrides that. A teacher without artifacts is left alone. Written are the
adapter with its card, report.html with both audits, and checkpoints (`--resume`). Every field of CleaningArguments and
SingerConfig is a flag. `accelerate launch -m singer_hf clean ...` trains on several processes.
"""

import os
import sys
from dataclasses import dataclass, field

from singer_hf import SingerConfig
from singer_hf.cleaning.clean import clean
from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.data.image_processors import load_image_processor
from singer_hf.training.adapter.arguments import CleaningArguments


@dataclass
class CleanSettings:
    """Flags of the command beside those of CleaningArguments and SingerConfig."""

    model_name_or_path: str = field(metadata={"help": "Teacher: Hub id (transformers or timm/) or local folder."})
    dataset_name: str = field(metadata={"help": "Images: Hub id, imagefolder, or folder of parquet or arrow files."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the images."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on a seeded subset of this size."})
    num_audit_images: int = field(default=256, metadata={"help": "Images of the audits before and after."})
    processor_name_or_path: str | None = field(default=None, metadata={"help": "Image processor of the teacher."})
    resume: bool = field(default=False, metadata={"help": "Resume from the last complete checkpoint in output_dir."})


@one_line_errors()
def main() -> None:
    """Parses the flags or a YAML file and cleans the teacher."""
    settings, args, config = CommandParser(CleanSettings, CleaningArguments, SingerConfig).parse(sys.argv[1:])
    cleaned = clean(
        settings.model_name_or_path,
        settings.dataset_name,
        config,
        args,
        processor=load_image_processor(settings.processor_name_or_path),
        split=settings.train_split,
        image_column=settings.image_column,
        max_samples=settings.max_train_samples,
        num_audit_images=settings.num_audit_images,
        resume_from_checkpoint=settings.resume or args.resume_from_checkpoint,
    )
    if args.process_index == 0 and os.path.isfile(os.path.join(args.output_dir, "adapter_config.json")):
        blocks = ", ".join(map(str, sorted(cleaned.base_model.singer_layers)))
        print(f"Adapter behind block {blocks} written to {args.output_dir}; see {args.output_dir}/report.html")
