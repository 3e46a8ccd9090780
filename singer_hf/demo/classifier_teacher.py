"""A ViT classifier as a teacher: built, trained on labelled images and measured."""

from typing import Any

import datasets
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTImageProcessor
from transformers.trainer_utils import SaveStrategy

from singer_hf.data.batches.image_batches import load_batches
from singer_hf.data.endless.rows import SceneIndices
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.transforms import eval_transform, train_transform
from singer_hf.demo.artifact_log import ArtifactLog, views_per_step
from singer_hf.demo.mixing import Mixing
from singer_hf.demo.planted_model import block_norm_statistics, reserve_units
from singer_hf.demo.teacher_data import scene_seed
from singer_hf.demo.teacher_settings import TeacherArguments, TeacherSettings
from singer_hf.demo.teacher_trainer import BatchPreparation, TeacherTrainer, collate_indices
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.loading import load_config

NUM_MEASURED_IMAGES = 1_000
_BATCH = 250


class Classification(nn.Module):
    """A classifier with its loss. Checkpoints of a plain module keep the parameter names of the module.

    Args:
        classifier: The model.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1].
    """

    accepts_loss_kwargs = False

    def __init__(self, classifier: PreTrainedModel, label_smoothing: float) -> None:
        super().__init__()
        self.classifier, self.label_smoothing = classifier, label_smoothing

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Scalar ``loss`` and ``logits`` (B, K) of images (B, 3, H, W) with classes (B,) or probabilities (B, K)."""
        logits = self.classifier(pixel_values).logits
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), "logits": logits}


def new_classifier(config_name: str, rows: datasets.Dataset) -> tuple[PreTrainedModel, ViTImageProcessor]:
    """A classifier with random weights for the classes of ``rows``, and its image processor.

    The last hidden unit of every MLP is reserved, so that planting overwrites no trained weights.

    Args:
        config_name: Config of the ViT, see :func:`singer_hf.vit.loading.load_config`.
        rows: Images with the column ``label``.
    """
    config = load_config(config_name, "teacher_config")
    names = getattr(rows.features["label"], "names", None) or [str(label) for label in sorted(set(rows["label"]))]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    size = {"height": config.image_size, "width": config.image_size}
    processor = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3)
    classifier = AutoModelForImageClassification.from_config(config)
    reserve_units(classifier)
    return classifier, processor


def train_classifier(
    classifier: PreTrainedModel,
    processor: ViTImageProcessor,
    rows: datasets.Dataset,
    args: TeacherArguments,
    settings: TeacherSettings,
    *,
    logged_images: Tensor | None = None,
    checkpoint: str | None = None,
) -> list[dict[str, Any]]:
    """Trains a classifier with the Trainer of transformers, in place.

    Args:
        classifier: The model.
        processor: Its image processor.
        rows: Labelled images; not used for endless scenes.
        args: Arguments of the Trainer. For endless scenes the order of the images and, if they would be written once
            per epoch, the steps of the checkpoints are changed: such a run is one epoch.
        settings: Images, crops and mixing.
        logged_images: Held-out images (B, 3, H, W) for the log of artifacts.
        checkpoint: Checkpoint to resume from.

    Returns:
        The log of the Trainer.

    Raises:
        ValueError: If transformers is too old for endless scenes, whose order is that of their indices.
    """
    if settings.is_endless:
        if not hasattr(args, "train_sampling_strategy"):
            raise ValueError(f"endless scenes need transformers 5.2 or later, got {transformers.__version__}")
        args.train_sampling_strategy = "sequential"
        args.save_strategy = SaveStrategy.STEPS if args.save_strategy == SaveStrategy.EPOCH else args.save_strategy
        images, collator = SceneIndices(args.max_steps * views_per_step(args)), collate_indices
    else:
        transform = train_transform(processor, scale=(settings.min_crop, 1.0))
        images, collator = transform_images(rows, transform, seed=args.seed), ImageCollator()
    mixing = Mixing(settings.mixup_alpha, settings.cutmix_alpha, classifier.config.num_labels)
    trainer = TeacherTrainer(
        Classification(classifier, args.label_smoothing),
        args,
        train_dataset=images,
        data_collator=collator,
        prepare_batch=BatchPreparation(mixing, scene_seed(args.seed), classifier.config.image_size),
    )
    if logged_images is not None:
        trainer.add_callback(ArtifactLog(trainer, classifier, logged_images, settings.artifact_log_steps))
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.state.log_history


def measure_classifier(
    classifier: PreTrainedModel, processor: ViTImageProcessor, rows: datasets.Dataset, device: torch.device
) -> dict:
    """Top-1 accuracy in [0, 1] as ``top1``, and the norms of the patch tokens after every block as ``blocks``.

    Args:
        classifier: The model; it is moved to ``device``.
        processor: Its image processor.
        rows: Labelled images; the norms are measured on the first 1,000.
        device: Device of the computation.
    """
    loader = DataLoader(transform_images(rows, eval_transform(processor)), _BATCH, collate_fn=ImageCollator())
    hits = 0
    with evaluation_mode(classifier.to(device)):
        for batch in tqdm(loader, "accuracy"):
            logits = classifier(batch["pixel_values"].to(device)).logits
            hits += int((logits.argmax(1).cpu() == batch["labels"]).sum())
        blocks = block_norm_statistics(classifier, first_images(rows, processor, NUM_MEASURED_IMAGES).to(device))
    return {"top1": hits / len(rows), "blocks": blocks}


def first_images(rows: datasets.Dataset, processor: ViTImageProcessor, number: int) -> Tensor:
    """The first images as one batch (B, 3, H, W), normalised.

    Args:
        rows: Images.
        processor: Image processor that gives size, mean and standard deviation.
        number: Number of images; all of them if there are fewer.
    """
    return torch.cat(load_batches(rows, processor, number))
