"""Trains a ViT on labelled images, and plants high-norm tokens in a copy of it if asked to.

    python examples/train_teacher.py --dataset_name path/to/cifar10 --teacher_config \
        examples/configs/teachers/vit-6x64-patch4-32px.json --num_train_epochs 30 --output_dir outputs/teacher
    python examples/train_teacher.py --dataset_name path/to/cifar10 --trained_teacher outputs/teacher/unplanted \
        --planted_direction leading --output_dir outputs/teacher_leading

Writes `unplanted/` (the classifier as it was trained), `planted/` (unless `--planted_share 0`) and teacher.json into
output_dir: accuracy on the test split before and after planting, and the norms of the patch tokens block by block. One
hidden unit of every MLP is kept out of use in training, so that the planting overwrites nothing. Runs go on
with `--resume True`; every flag of transformers.TrainingArguments is taken.
"""

import copy
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    HfArgumentParser,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from singer_hf.artifacts.planted_model import (
    PLANTED_DIRECTIONS,
    block_norm_statistics,
    norm_lines,
    plant_in_model,
    reserve_units,
)
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.image_processors import load_image_processor
from singer_hf.data.transforms import eval_transform, train_transform

NUM_FITTED_IMAGES, NUM_MEASURED_IMAGES = 2_000, 1_000


@dataclass
class Settings:
    dataset_name: str = field(metadata={"help": "Labelled images: a folder or Hub id."})
    teacher_config: str | None = field(default=None, metadata={"help": "Config of the ViT: JSON file, folder or id."})
    trained_teacher: str | None = field(default=None, metadata={"help": "Plant in this classifier, do not train."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str = field(default="test", metadata={"help": "Split on which the accuracy is measured."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on a seeded subset of this size."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Measure on a seeded subset of this size."})
    min_crop: float = field(default=0.5, metadata={"help": "Smallest share of an image's area in a random crop."})
    planted_share: float = field(default=0.04, metadata={"help": "Share of patches with planted tokens; 0: none."})
    planted_ratio: float = field(default=16.0, metadata={"help": "Their norm in units of the median norm."})
    planted_block: int | None = field(default=None, metadata={"help": "Block that writes them. Default: L / 3."})
    planted_direction: str = field(
        default="random", metadata={"help": f"Along what: one of {', '.join(PLANTED_DIRECTIONS)}."}
    )
    planted_seed: int = field(default=0, metadata={"help": "Seed of the random direction."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in output_dir."})

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
    """The Trainer's arguments with defaults for a ViT trained from scratch."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or a share of all steps below 1."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images a step and device."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing of the cross-entropy."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Must stay off."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints that are kept."})


class Classification(nn.Module):
    """The classifier with its loss. A plain module: its checkpoints keep the names that the module itself has."""

    accepts_loss_kwargs = False

    def __init__(self, classifier: PreTrainedModel, label_smoothing: float) -> None:
        super().__init__()
        self.classifier, self.label_smoothing = classifier, label_smoothing

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(pixel_values).logits
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), "logits": logits}


def load_split(settings: Settings, split: str, max_samples: int | None, seed: int) -> datasets.Dataset:
    rows = load_image_dataset(settings.dataset_name, split=split, max_samples=max_samples, seed=seed)
    if rows[0].get("label") is None:  # without class folders there may be a column of nothing
        raise ValueError(f"`--dataset_name` must have class labels, got {settings.dataset_name!r} without any")
    return rows


def new_classifier(settings: Settings, rows: datasets.Dataset) -> tuple[PreTrainedModel, ViTImageProcessor]:
    config = AutoConfig.from_pretrained(settings.teacher_config)
    feature = rows.features["label"]
    names = getattr(feature, "names", None) or [str(label) for label in sorted(set(rows["label"]))]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    size = {"height": config.image_size, "width": config.image_size}
    processor = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3)
    classifier = AutoModelForImageClassification.from_config(config)
    reserve_units(classifier)
    return classifier, processor


def train(
    classifier: PreTrainedModel,
    processor: ViTImageProcessor,
    rows: datasets.Dataset,
    settings: Settings,
    args: TeacherArguments,
) -> None:
    transform = train_transform(processor, scale=(settings.min_crop, 1.0))
    trainer = Trainer(
        Classification(classifier, args.label_smoothing),
        args,
        train_dataset=transform_images(rows, transform, seed=args.seed),
        data_collator=ImageCollator(),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir) if settings.resume else None)


def last_checkpoint(output_dir: str) -> str:
    checkpoint = get_last_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(f"`--resume` found no checkpoint in {output_dir!r}; leave it out to start anew")
    return checkpoint


def images(rows: datasets.Dataset, processor: ViTImageProcessor, number: int) -> Tensor:
    rows = transform_images(rows.select(range(min(number, len(rows)))), eval_transform(processor))
    return torch.stack([row["pixel_values"] for row in rows])


@torch.no_grad()
def measure(
    classifier: PreTrainedModel, processor: ViTImageProcessor, rows: datasets.Dataset, device: torch.device
) -> dict:
    """Top-1 accuracy on the rows, and the norms of the patch tokens behind every block on some of them."""
    classifier.to(device).eval()
    loader = DataLoader(transform_images(rows, eval_transform(processor)), 250, collate_fn=ImageCollator())
    hits = 0
    for batch in tqdm(loader, "accuracy"):
        hits += int((classifier(batch["pixel_values"].to(device)).logits.argmax(1).cpu() == batch["labels"]).sum())
    norms = block_norm_statistics(classifier, images(rows, processor, NUM_MEASURED_IMAGES).to(device))
    return {"top1": hits / len(rows), "blocks": norms}


def planted_copy(
    classifier: PreTrainedModel, processor: ViTImageProcessor, rows: datasets.Dataset, settings: Settings
) -> PreTrainedModel:
    planted = copy.deepcopy(classifier).cpu()
    block = settings.planted_block
    plant_in_model(
        planted,
        images(rows, processor, NUM_FITTED_IMAGES),
        planted.config.num_hidden_layers // 3 if block is None else block,
        share=settings.planted_share,
        ratio=settings.planted_ratio,
        direction=settings.planted_direction,
        seed=settings.planted_seed,
    )
    return planted


def save(model: PreTrainedModel, processor: ViTImageProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def report(title: str, figures: dict) -> None:
    print(f"\n{title}: top-1 accuracy {figures['top1']:.4f}")
    print("\n".join(norm_lines(figures["blocks"])))


def main() -> None:
    settings, args = HfArgumentParser([Settings, TeacherArguments]).parse_args_into_dataclasses()
    set_seed(args.seed)
    output = Path(args.output_dir)
    rows = load_split(settings, settings.train_split, settings.max_train_samples, args.seed)
    test = load_split(settings, settings.test_split, settings.max_test_samples, args.seed)
    if settings.trained_teacher:
        classifier = AutoModelForImageClassification.from_pretrained(settings.trained_teacher)
        processor = load_image_processor(settings.trained_teacher)
        if processor is None:
            raise ValueError(f"`--trained_teacher` must hold an image processor, got {settings.trained_teacher!r}")
    else:
        classifier, processor = new_classifier(settings, rows)
        train(classifier, processor, rows, settings, args)
        save(classifier, processor, output / "unplanted")
    figures = {"command": sys.argv, "unplanted": measure(classifier, processor, test, args.device)}
    report("As trained", figures["unplanted"])
    if settings.planted_share:
        planted = planted_copy(classifier, processor, rows, settings)
        save(planted, processor, output / "planted")
        figures["planted"] = measure(planted, processor, test, args.device)
        report("After planting", figures["planted"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "teacher.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
