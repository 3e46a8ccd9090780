"""Trains a ViT on labelled images and optionally plants high-norm tokens in a copy of it.

    python examples/train_teacher.py --dataset_name path/to/cifar10 --teacher_config \
        examples/configs/teachers/vit-6x64-patch4-32px.json --num_train_epochs 30 --output_dir outputs/teacher
    python examples/train_teacher.py --dataset_name path/to/cifar10 --trained_teacher outputs/teacher/unplanted \
        --planted_direction leading --output_dir outputs/teacher_leading

Writes `unplanted/` (the trained classifier), `planted/` (unless `--planted_share 0`) and teacher.json into output_dir.
teacher.json contains the accuracy on the test split before and after planting and the norms of the patch tokens block
by block. One hidden unit of every MLP is reserved during training, so that planting overwrites no trained weights.
`--resume True` resumes a stopped run. Every field of transformers.TrainingArguments is a flag.
"""

import copy
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from singer_hf.artifacts.planted_model import PLANTED_DIRECTIONS, plant_in_model
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_processors import load_image_processor
from singer_hf.demo.classifier_teacher import first_images, measure_classifier, new_classifier, train_classifier
from singer_hf.demo.planted_teacher import save_teacher, teacher_report

NUM_FITTED_IMAGES = 2_000


@dataclass
class TeacherSettings:
    """Data, model and planting of the teacher."""

    dataset_name: str = field(metadata={"help": "Labelled images: a folder or Hub id."})
    teacher_config: str | None = field(default=None, metadata={"help": "Config of the ViT: JSON file, folder or id."})
    trained_teacher: str | None = field(
        default=None, metadata={"help": "Plant tokens in this classifier instead of training one."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str = field(default="test", metadata={"help": "Split on which the accuracy is measured."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on a seeded subset of this size."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Measure on a seeded subset of this size."})
    min_crop: float = field(default=0.5, metadata={"help": "Smallest share of an image's area in a random crop."})
    planted_share: float = field(default=0.04, metadata={"help": "Share of patches with planted tokens; 0: none."})
    planted_ratio: float = field(
        default=16.0, metadata={"help": "Norm of the planted tokens divided by the median norm."}
    )
    planted_block: int | None = field(default=None, metadata={"help": "Block that writes them. Default: L / 3."})
    planted_direction: str = field(
        default="random", metadata={"help": f"Their direction: one of {', '.join(PLANTED_DIRECTIONS)}."}
    )
    planted_seed: int = field(default=0, metadata={"help": "Seed of the random direction."})
    resume: bool = field(default=False, metadata={"help": "Resume from the last checkpoint in output_dir."})

    def __post_init__(self) -> None:
        if (self.teacher_config is None) == (self.trained_teacher is None):
            raise ValueError("give exactly one of `--teacher_config` and `--trained_teacher`")
        if self.planted_direction not in PLANTED_DIRECTIONS:
            raise ValueError(
                f"`--planted_direction` must be one of {PLANTED_DIRECTIONS}, got {self.planted_direction!r}"
            )
        if not 0 <= self.planted_share < 0.5:
            raise ValueError(f"`--planted_share` must lie in [0, 0.5), got {self.planted_share!r}")


@dataclass
class TeacherArguments(TrainingArguments):
    """TrainingArguments with defaults for a ViT trained from scratch."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or a share of all steps below 1."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per step and device."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing of the cross-entropy."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Must be False."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Number of checkpoints to keep."})


def train_teacher(settings: TeacherSettings, args: TeacherArguments) -> None:
    """Trains or loads the classifier, measures it, plants, and writes everything to ``args.output_dir``."""
    set_seed(args.seed)
    output = Path(args.output_dir)
    rows = _load_split(settings, settings.train_split, settings.max_train_samples, args.seed)
    test = _load_split(settings, settings.test_split, settings.max_test_samples, args.seed)
    if settings.trained_teacher:
        classifier, processor = _load_classifier(settings.trained_teacher)
    else:
        classifier, processor = _train(settings, args, rows)
        save_teacher(classifier, processor, output / "unplanted")
    measured = {"command": sys.argv, "unplanted": measure_classifier(classifier, processor, test, args.device)}
    _print_report("As trained", measured["unplanted"])
    if settings.planted_share:
        planted = _planted_copy(classifier, processor, rows, settings)
        save_teacher(planted, processor, output / "planted")
        measured["planted"] = measure_classifier(planted, processor, test, args.device)
        _print_report("After planting", measured["planted"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "teacher.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def _load_split(settings: TeacherSettings, split: str, max_samples: int | None, seed: int) -> datasets.Dataset:
    rows = load_image_dataset(settings.dataset_name, split=split, max_samples=max_samples, seed=seed)
    if rows[0].get("label") is None:  # without class folders the column can exist and contain None
        raise ValueError(f"`--dataset_name` must have class labels, got {settings.dataset_name!r} without any")
    return rows


def _load_classifier(name: str) -> tuple[PreTrainedModel, ViTImageProcessor]:
    classifier, processor = AutoModelForImageClassification.from_pretrained(name), load_image_processor(name)
    if processor is None:
        raise ValueError(f"`--trained_teacher` must hold an image processor, got {name!r}")
    return classifier, processor


def _train(
    settings: TeacherSettings, args: TeacherArguments, rows: datasets.Dataset
) -> tuple[PreTrainedModel, ViTImageProcessor]:
    classifier, processor = new_classifier(settings.teacher_config, rows)
    train_classifier(
        classifier,
        processor,
        rows,
        args,
        label_smoothing=args.label_smoothing,
        min_crop=settings.min_crop,
        checkpoint=_last_checkpoint(args.output_dir) if settings.resume else None,
    )
    return classifier, processor


def _last_checkpoint(output_dir: str) -> str:
    checkpoint = get_last_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(f"`--resume` found no checkpoint in {output_dir!r}; omit it to start from the beginning")
    return checkpoint


def _planted_copy(
    classifier: PreTrainedModel, processor: ViTImageProcessor, rows: datasets.Dataset, settings: TeacherSettings
) -> PreTrainedModel:
    planted = copy.deepcopy(classifier).cpu().eval()
    block = settings.planted_block
    plant_in_model(
        planted,
        first_images(rows, processor, NUM_FITTED_IMAGES),
        planted.config.num_hidden_layers // 3 if block is None else block,
        share=settings.planted_share,
        ratio=settings.planted_ratio,
        direction=settings.planted_direction,
        seed=settings.planted_seed,
    )
    return planted


def _print_report(title: str, measured: dict) -> None:
    print("\n" + teacher_report(title, {"top-1 accuracy": measured["top1"]}, measured["blocks"]))
