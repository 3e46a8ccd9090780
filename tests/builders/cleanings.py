"""Cleanings of the planted ViT for tests, on tiny noise images. All offline."""

from pathlib import Path

import datasets
import numpy as np
import torch
import transformers as hf
from PIL import Image
from planted import IMAGE, planted_vit
from torch import nn

from singer_hf.cleaning.clean import clean
from singer_hf.vit.structure import view_vit

# 4,000 patches are 167 images of 24 patches.
NUM_IMAGES = 168
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
FEW_STEPS = {"max_steps": 100, "per_device_train_batch_size": 8, "learning_rate": 0.05}


def noise_dataset(number: int = NUM_IMAGES) -> datasets.Dataset:
    values = np.random.default_rng(0).integers(0, 255, (number, *IMAGE, 3), dtype=np.uint8)
    return datasets.Dataset.from_dict({"image": [Image.fromarray(image) for image in values]})


def planted_processor() -> hf.ViTImageProcessor:
    size = {"height": IMAGE[0], "width": IMAGE[1]}
    return hf.ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def lasting_vit() -> hf.ViTModel:
    """The planted ViT in which no block removes the long vectors again."""
    model = planted_vit()
    with torch.no_grad():
        view_vit(model).mlp_layers(2)[1].weight.zero_()
    return model


def saved_teacher(folder: Path) -> Path:
    lasting_vit().save_pretrained(folder)
    planted_processor().save_pretrained(folder)
    return folder


def clean_planted(teacher: nn.Module | str | None = None, **options: object) -> nn.Module:
    """A short cleaning of the planted ViT, or of another teacher."""
    torch.manual_seed(0)
    given = {name: options.pop(name) for name in ("images", "config", "args") if name in options}
    images, config, args = given.get("images", noise_dataset()), given.get("config"), given.get("args")
    settings = {} if args else QUIET if "method" in options else {**QUIET, **FEW_STEPS}
    options = {"processor": planted_processor(), "num_audit_images": NUM_IMAGES, **settings, **options}
    return clean(lasting_vit() if teacher is None else teacher, images, config, args, **options)
