"""Tiny labelled data and models for the tests of the evaluation. All offline."""

from pathlib import Path

import numpy as np
import torch
import transformers as hf
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch.nn import functional as F

from singer_hf.data.image_processors import image_spec
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.features.feature_loaders import ArrayFeatureLoader

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (230, 220, 60))
SIZE = 16


def colour_image(label: int, seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """Noise around the colour of a class; ``size`` is (height, width)."""
    noise = np.random.default_rng((label, seed)).integers(-30, 30, (*size, 3))
    return Image.fromarray((np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8))


def colour_dataset(number: int, seed: int = 0, num_classes: int = 3) -> Dataset:
    labels = [i % num_classes for i in range(number)]
    images = [colour_image(label, seed * 10_000 + i) for i, label in enumerate(labels)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[f"c{i}" for i in range(num_classes)])})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def image_folder(root: Path, splits: dict[str, list[str]], images_per_class: int = 4) -> Path:
    """An imagefolder: split -> names of its class folders; class k of a split has colour k mod 4."""
    for split, names in splits.items():
        for label, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(images_per_class):
                colour_image(label % len(COLOURS), i + 100 * (split != "train")).save(folder / f"{i}.png")
    return root


def half_masks(number: int, size: tuple[int, int] = (20, 30), seed: int = 0) -> Dataset:
    """Images (height, width) whose left part is red (class 0) and right part blue (class 1); row 0 is void (11)."""
    columns = {"image": [], "annotation": []}
    for i in range(number):
        border = int(np.random.default_rng((seed, i)).integers(8, size[1] - 8))
        pixels = np.array(colour_image(0, seed * 1000 + i, size))
        pixels[:, border:] = np.array(colour_image(2, seed * 1000 + i, size))[:, border:]
        mask = np.zeros(size, dtype=np.uint8)
        mask[:, border:], mask[0] = 1, 11
        columns["image"].append(Image.fromarray(pixels))
        columns["annotation"].append(Image.fromarray(mask))
    return Dataset.from_dict(columns, features=Features({"image": ImageFeature(), "annotation": ImageFeature()}))


def tiny_model(seed: int = 0, **config: object) -> hf.ViTModel:
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": SIZE,
        "patch_size": 4,
        "initializer_range": 0.2,  # else the tokens before the norm hardly depend on the image
    }
    return hf.ViTModel(hf.ViTConfig(**{**sizes, **config}), add_pooling_layer=False).eval()


def tiny_processor(size: int = SIZE) -> hf.ViTImageProcessor:
    return hf.ViTImageProcessor(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


def tiny_evaluated_model(name: str = "tiny", seed: int = 0) -> EvaluatedModel:
    return EvaluatedModel(name, tiny_model(seed), image_spec(tiny_processor()))


def saved_model(folder: Path, seed: int = 0) -> Path:
    tiny_model(seed).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def class_rows(rows=160, blocks=1, seed=0):
    """Class tokens that tell one of 4 classes linearly, and a mean patch that does not."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (rows,), generator=rng)
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(99)) * 2
    tokens = centres[labels][:, None] + torch.randn(rows, blocks, 8, generator=rng)
    return ArrayFeatureLoader({"cls": tokens, "mean": torch.randn(rows, blocks, 8, generator=rng)}, labels)


def dense_rows(task, rows=48, seed=0, shuffled=False):
    """Patch features whose channels give the class or depth of each 4 x 4 pixel block linearly."""
    rng = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (rows, 4, 6), generator=rng)
    patches = F.one_hot(classes, 8).float().permute(0, 3, 1, 2) + 0.1 * torch.randn(rows, 8, 4, 6, generator=rng)
    labels = classes.repeat_interleave(4, 1).repeat_interleave(4, 2)
    if task == "depth":
        labels = 1.0 + 3.0 * labels
    if shuffled:
        labels = labels[torch.randperm(rows, generator=rng)]
    return ArrayFeatureLoader({"map": patches, "global": torch.randn(rows, 8, generator=rng)}, labels)


def first(loader):
    """Features of the first four rows."""
    return next(loader.iterate([range(4)]))[0]
