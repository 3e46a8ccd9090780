"""Images with masks of class indices or with depth maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

from singer_hf.data.decoding import decode_image
from singer_hf.evaluation.benchmarks.image_crops import ImageCrop

IGNORED = 255
# Default names of the target column.
TARGET_COLUMNS = {
    "segmentation": ("annotation", "mask", "segmentation", "label", "semantic"),
    "depth": ("depth", "depth_map"),
}


@dataclass(frozen=True)
class MaskDecoder:
    """Decodes an image of class indices to a mask (H, W) in uint8, 255 where a pixel is ignored.

    Attributes:
        ignore_values: Values that become the ignored index 255.
        offset: Added to the other values.
    """

    ignore_values: tuple[int, ...] = (IGNORED,)
    offset: int = 0

    def __call__(self, image: Image.Image) -> Tensor:
        """Decodes an image, also a palette image, to a mask (H, W).

        Raises:
            ValueError: If the image has more than one channel, or an index does not fit into 0 to 254.
        """
        values = torch.from_numpy(_one_channel(image, "a mask of class indices").astype(np.int64))
        ignored = torch.isin(values, torch.tensor(self.ignore_values, dtype=torch.int64))
        indices = torch.where(ignored, IGNORED, values + self.offset)
        wrong = indices[(indices < 0) | (indices > IGNORED)]
        if len(wrong):
            raise ValueError(f"a mask's class indices must be within 0 and 254, got {int(wrong[0])}")
        return indices.to(torch.uint8)


@dataclass(frozen=True)
class DepthDecoder:
    """Decodes a depth image to metres (H, W) in float32.

    Attributes:
        scale: Metres per unit of an integer image, such as 0.001 for millimetres; images of floats are in metres.
    """

    scale: float = 1.0

    def __call__(self, image: Image.Image) -> Tensor:
        """Decodes an image to depths (H, W); 0 stays 0 and marks a missing measurement.

        Raises:
            ValueError: If the image has more than one channel.
        """
        values = _one_channel(image, "a depth map")
        scale = 1.0 if values.dtype.kind == "f" else self.scale
        return torch.from_numpy(values.astype(np.float32)) * scale


class DenseRows(torch.utils.data.Dataset):
    """Rows {"pixel_values": (3, h, w), "labels": (h, w)} of images and targets, cut alike on access.

    Each row draws its random numbers from a generator seeded by (seed, epoch, index), so that the number of workers
    does not matter.

    Args:
        dataset: Columns "image" and "target", not decoded; see :func:`select_dense_columns`.
        crop: Crop of image and target.
        decode: Decoder of a target image to a tensor (H, W): a :class:`MaskDecoder` or a :class:`DepthDecoder`.
        seed: Seed of random crops.
    """

    def __init__(
        self, dataset: Dataset, crop: ImageCrop, decode: Callable[[Image.Image], Tensor], seed: int = 0
    ) -> None:
        self.dataset, self.crop, self.decode, self.seed = dataset, crop, decode, seed
        # In shared memory, so that persistent workers see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, target = self.load(index)
        seed = int(np.random.SeedSequence((self.seed, int(self._epoch), index)).generate_state(1, np.uint64)[0])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            pixel_values, labels = self.crop(image, target)
        return {"pixel_values": pixel_values, "labels": labels}

    def set_epoch(self, epoch: int) -> None:
        """Draws new random crops from now on."""
        self._epoch.fill_(epoch)

    def load(self, index: int) -> tuple[Image.Image, Tensor]:
        """Loads the image of a row and its decoded target (H, W), at their stored size.

        Raises:
            ValueError: If one cannot be decoded or they differ in size.
        """
        row = self.dataset[int(index)]
        try:
            image, stored = decode_image(row["image"]), decode_image(row["target"])
        except Exception as error:  # Pillow's plugins raise almost anything on damaged files.
            raise ValueError(f"row {index} must hold a readable image and target, got {error}") from error
        target = self.decode(stored)
        if tuple(target.shape) != (image.height, image.width):
            raise ValueError(
                f"a mask must be of the size of its image (height, width) {(image.height, image.width)}, got "
                f"{tuple(target.shape)} in row {index}; resize the masks to their images, to the nearest pixel"
            )
        return image, target


def select_dense_columns(
    dataset: Dataset, task: str, *, image_column: str | None = None, target_column: str | None = None
) -> Dataset:
    """Selects images and targets as columns "image" and "target", not decoded.

    Args:
        dataset: A dataset with two image columns. An imagefolder has them if its metadata.csv has the columns
            ``file_name`` and, for example, ``mask_file_name``.
        task: "segmentation" or "depth".
        image_column: Column with the images; None takes "image" or the only other image column.
        target_column: Column with the masks or depth maps; None takes a default name or the only other image column.

    Raises:
        ValueError: If a column is missing, is no image column, or cannot be found.
    """
    images = [name for name, feature in dataset.features.items() if _is_image(feature)]
    target = _choose(images, target_column, "target_column", TARGET_COLUMNS[task], exclude=image_column or "image")
    image = _choose(images, image_column, "image_column", ("image",), exclude=target)
    dataset = dataset.with_format(None).select_columns([image, target])
    dataset = dataset.rename_columns({image: "_image", target: "_target"})
    dataset = dataset.rename_columns({"_image": "image", "_target": "target"})
    return dataset.cast_column("image", ImageFeature(decode=False)).cast_column("target", ImageFeature(decode=False))


def _is_image(feature: object) -> bool:
    # Parquet files written without `datasets` hold images as a plain struct.
    return isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _choose(images: list[str], named: str | None, argument: str, usual: Sequence[str], exclude: str) -> str:
    if named is not None:
        if named not in images:
            raise ValueError(f"`{argument}` must be one of the image columns {images}, got {named!r}")
        return named
    others = [name for name in images if name != exclude]
    found = [name for name in usual if name in others] or (others if len(others) == 1 else [])
    if not found:
        raise ValueError(f"`{argument}` must name one of the image columns {images}, got None")
    return found[0]


def _one_channel(image: Image.Image, what: str) -> np.ndarray:
    values = np.asarray(image)
    if values.ndim != 2:
        raise ValueError(
            f"{what} must be an image of one channel, got mode {image.mode!r}; convert colours to indices"
        )
    return values
