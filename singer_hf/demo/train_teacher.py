"""Trains a ViT on labelled images and optionally plants high-norm tokens in a copy of it.

    python examples/train_teacher.py --dataset_name path/to/cifar10 --teacher_config \
        vit-6x64-patch4-32px --num_train_epochs 30 --output_dir outputs/teacher
    python examples/train_teacher.py --dataset_name path/to/cifar10 --trained_teacher outputs/teacher/unplanted \
        --planted_direction leading --output_dir outputs/teacher_leading
    python examples/train_teacher.py --dataset_name "endless scenes" --max_steps 300 --planted_share 0 \
        --teacher_config vit-6x64-patch4-32px --mixup_alpha 0.8 --cutmix_alpha 1 \
        --artifact_log_steps 50 --output_dir outputs/endless

Writes `unplanted/` (the trained classifier), `planted/` (unless `--planted_share 0`) and teacher.json into output_dir.
teacher.json contains the accuracy on the test split before and after planting and the norms of the patch tokens block
by block. One hidden unit of every MLP is reserved during training, so that planting overwrites no trained weights.
With `--artifact_log_steps` it also contains the high-norm tokens over the image views, drawn in artifacts.png.
`--resume True` resumes a stopped run. Every field of transformers.TrainingArguments is a flag.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTImageProcessor, set_seed

from singer_hf.data.image_processors import load_image_processor
from singer_hf.demo.artifact_log import artifact_figure, artifact_rows
from singer_hf.demo.classifier_teacher import first_images, measure_classifier, new_classifier, train_classifier
from singer_hf.demo.planted_model import plant_in_model
from singer_hf.demo.planted_teacher import save_teacher, teacher_report
from singer_hf.demo.teacher_data import (
    NUM_FITTED_IMAGES,
    SYNTHETIC,
    check_length,
    load_teacher_images,
    logged_rows,
    save_scenes,
)
from singer_hf.demo.teacher_settings import TeacherArguments, TeacherSettings
from singer_hf.training.figures import save_figure
from singer_hf.training.guards.checkpoint_order import sort_checkpoints
from singer_hf.training.guards.complete import is_written


def train_teacher(settings: TeacherSettings, args: TeacherArguments) -> None:
    """Trains or loads the classifier, measures it, plants, and writes everything to ``args.output_dir``.

    Args:
        settings: Data, model, mixing and planting.
        args: Arguments of the Trainer.

    Raises:
        ValueError: If settings or images do not fit.
    """
    check_length(settings, args)
    set_seed(args.seed)
    output, measured = Path(args.output_dir), {"command": sys.argv}
    if settings.is_endless:
        print(SYNTHETIC, flush=True)
        measured["data"] = SYNTHETIC
    rows, test = load_teacher_images(settings, args)
    if settings.trained_teacher:
        classifier, processor = _load_classifier(settings.trained_teacher)
    else:
        classifier, processor, log = _train(settings, args, rows, test)
        if args.process_index > 0:
            return
        save_teacher(classifier, processor, output / "unplanted")
        measured |= _report_artifacts(settings, log, output)
    measured["unplanted"] = measure_classifier(classifier, processor, test, args.device)
    _print_report("As trained", measured["unplanted"])
    if settings.planted_share:
        planted = _planted_copy(classifier, processor, rows, settings)
        save_teacher(planted, processor, output / "planted")
        measured["planted"] = measure_classifier(planted, processor, test, args.device)
        _print_report("After planting", measured["planted"])
    if settings.saved_scenes:
        save_scenes(settings, args, classifier.config.image_size, test, output / "scenes")
    output.mkdir(parents=True, exist_ok=True)
    (output / "teacher.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def _load_classifier(name: str) -> tuple[PreTrainedModel, ViTImageProcessor]:
    classifier, processor = AutoModelForImageClassification.from_pretrained(name), load_image_processor(name)
    if processor is None:
        raise ValueError(f"`--trained_teacher` must hold an image processor, got {name!r}")
    return classifier, processor


def _train(
    settings: TeacherSettings, args: TeacherArguments, rows: datasets.Dataset, test: datasets.Dataset
) -> tuple[PreTrainedModel, ViTImageProcessor, list[dict[str, Any]]]:
    """A trained classifier, its image processor and the log of its training."""
    classifier, processor = new_classifier(settings.teacher_config, rows)
    logged = logged_rows(test)
    log = train_classifier(
        classifier,
        processor,
        rows,
        args,
        settings,
        logged_images=first_images(logged, processor, len(logged)) if settings.artifact_log_steps else None,
        checkpoint=_last_checkpoint(args.output_dir) if settings.resume else None,
    )
    return classifier, processor, log


def _last_checkpoint(output_dir: str) -> str:
    """The latest checkpoint that was written to its end."""
    written = [folder for folder in sort_checkpoints(output_dir) if is_written(Path(folder))]
    if not written:
        raise ValueError(f"`--resume` found no checkpoint in {output_dir!r}; omit it to start from the beginning")
    return written[-1]


def _report_artifacts(settings: TeacherSettings, log: list[dict[str, Any]], output: Path) -> dict[str, Any]:
    """The measured high-norm tokens as ``artifacts``, drawn into artifacts.png; nothing if they were not logged."""
    rows = artifact_rows(log)
    if not rows:
        return {}
    mixing = f"MixUp {settings.mixup_alpha:g}, CutMix {settings.cutmix_alpha:g}"
    data = "SYNTHETIC endless scenes" if settings.is_endless else Path(settings.dataset_name).name
    save_figure(
        lambda: artifact_figure(rows, f"High-norm tokens while training on {data} ({mixing})"),
        output / "artifacts.png",
    )
    return {"artifacts": rows}


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
