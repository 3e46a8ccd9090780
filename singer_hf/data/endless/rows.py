"""Endless scenes as data sets: a fixed number of stored images, and the indices of as many as a run needs."""

import io

import torch
from datasets import ClassLabel, Dataset, Features, Image
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.v2.functional import to_pil_image

from singer_hf.data.endless.scenes import CLASS_NAMES, draw_endless_scenes

_BATCH = 32


class SceneIndices(TorchDataset):
    """Rows ``{"index": i}`` for i from 0 to ``number`` - 1, from which the training device draws the scenes.

    Args:
        number: Number of scenes.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, int]:
        if not 0 <= index < self.number:
            raise IndexError(f"`index` must be from 0 to {self.number - 1}, got {index!r}")
        return {"index": index}


def scene_rows(number: int, seed: int, size: int, device: torch.device | str = "cpu") -> Dataset:
    """Draws scenes 0 to ``number`` - 1 of the series ``seed`` into a data set with columns ``image`` and ``label``.

    Args:
        number: Number of scenes, at least 1.
        seed: Seed of the series.
        size: Height and width in pixels.
        device: Device that draws them.

    Raises:
        ValueError: If an argument is out of range.
    """
    if number < 1:
        raise ValueError(f"`number` must be at least 1, got {number!r}")
    columns = {"image": [], "label": []}
    for indices in torch.arange(number).split(_BATCH):
        images, labels = draw_endless_scenes(indices.to(device), seed, size)
        columns["image"] += [_png(image) for image in (images * 255).round().byte().cpu()]
        columns["label"] += labels.tolist()
    return Dataset.from_dict(columns, Features({"image": Image(), "label": ClassLabel(names=list(CLASS_NAMES))}))


def _png(image: torch.Tensor) -> dict:
    buffer = io.BytesIO()
    to_pil_image(image).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}
