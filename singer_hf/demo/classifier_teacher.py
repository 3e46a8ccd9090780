"""A ViT classifier as a teacher: built, trained on labelled images and measured."""

import datasets
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
)

from singer_hf.artifacts.planted_model import block_norm_statistics, reserve_units
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.transforms import eval_transform, train_transform
from singer_hf.vit.inference import evaluation_mode

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
        """Scalar ``loss`` and ``logits`` (B, K) of images (B, 3, H, W) with classes (B,)."""
        logits = self.classifier(pixel_values).logits
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), "logits": logits}


def new_classifier(config_name: str, rows: datasets.Dataset) -> tuple[PreTrainedModel, ViTImageProcessor]:
    """A classifier with random weights for the classes of ``rows``, and its image processor.

    The last hidden unit of every MLP is reserved, so that planting overwrites no trained weights.

    Args:
        config_name: Config of the ViT: JSON file, folder or Hub id.
        rows: Images with the column ``label``.
    """
    config = AutoConfig.from_pretrained(config_name)
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
    args: TrainingArguments,
    *,
    label_smoothing: float,
    min_crop: float,
    checkpoint: str | None = None,
) -> None:
    """Trains a classifier with the Trainer of transformers, in place.

    Args:
        classifier: The model.
        processor: Its image processor.
        rows: Labelled images.
        args: Arguments of the Trainer.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1].
        min_crop: Smallest share of an image's area in a random crop, in (0, 1].
        checkpoint: Checkpoint to resume from.
    """
    transform = train_transform(processor, scale=(min_crop, 1.0))
    trainer = Trainer(
        Classification(classifier, label_smoothing),
        args,
        train_dataset=transform_images(rows, transform, seed=args.seed),
        data_collator=ImageCollator(),
    )
    trainer.train(resume_from_checkpoint=checkpoint)


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
    rows = transform_images(rows.select(range(min(number, len(rows)))), eval_transform(processor))
    return torch.stack([row["pixel_values"] for row in rows])
