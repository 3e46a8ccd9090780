"""Datasets of noise images, and their batches."""

import io

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.transforms import train_transform


def encoded(image, kind="png"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(seed, size=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def make_dataset(count=12, broken=(), labels=True):
    files = [b"broken" if index in broken else encoded(noise(index)) for index in range(count)]
    data = {"image": [{"bytes": file, "path": None} for file in files]}
    if labels:
        data["label"] = list(range(count))
    return select_image_and_label(Dataset.from_dict(data).cast_column("image", datasets.Image()))


def crop():
    return train_transform(ViTImageProcessor(size={"height": 8, "width": 8}))


def batches(rows, collator=None, **options):
    return list(DataLoader(rows, collate_fn=collator or ImageCollator(), **options))


def joined(loaded, key="pixel_values"):
    return torch.cat([batch[key] for batch in loaded])
