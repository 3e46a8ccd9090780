"""Trains a ViT on labelled images and optionally plants high-norm tokens in a copy of it.

    python examples/train_teacher.py --dataset_name path/to/cifar10 --teacher_config \
        vit-6x64-patch4-32px --num_train_epochs 30 --output_dir outputs/teacher
    python examples/train_teacher.py --dataset_name path/to/cifar10 --trained_teacher outputs/teacher/unplanted \
        --planted_direction leading --output_dir outputs/teacher_leading
    python examples/train_teacher.py --dataset_name "endless scenes" --max_steps 300 --planted_share 0 \
        --teacher_config vit-6x64-patch4-32px --mixup_alpha 0.8 --cutmix_alpha 1 \
        --artifact_log_steps 50 --output_dir outputs/endless

The flags are listed by `--help`. Every field of transformers.TrainingArguments is a flag.
"""

import sys

from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.demo.teacher_settings import TeacherArguments, TeacherSettings
from singer_hf.demo.train_teacher import train_teacher

if __name__ == "__main__":
    with one_line_errors():
        train_teacher(*CommandParser(TeacherSettings, TeacherArguments).parse(sys.argv[1:]))
