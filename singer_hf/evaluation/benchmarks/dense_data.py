"""Images with masks of class indices or with depth maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

from singer_hf.data.decoding import decode_image, decode_pixels
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
        values = _one_channel(image, "a mask of class indices")
        if values.dtype == np.uint8:  # by a table, as most masks are of bytes
            indices = np.take(self._shift(np.arange(256)), values)
        else:
            indices = self._shift(values.astype(np.int64))
        if indices.min() < 0 or indices.max() > IGNORED:
            wrong = indices[(indices < 0) | (indices > IGNORED)]
            raise ValueError(f"a mask's class indices must be within 0 and 254, got {int(wrong[0])}")
        return torch.from_numpy(indices.astype(np.uint8))

    def _shift(self, values: np.ndarray) -> np.ndarray:
        return np.where(np.isin(values, self.ignore_values), IGNORED, values + self.offset)


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
    """Rows {"pixels": uint8 (3, h, w), "labels": (h, w)} of images and targets, cut alike on access.

    Each row draws its random numbers from a generator seeded by (seed, epoch, index), so that the number of workers
    does not matter.

    Args:
        dataset: Columns "image" and "target", not decoded; see :func:`select_dense_columns`.
        crop: Crop of image and target.
        decode: Decoder of a target image to a tensor (H, W): a :class:`MaskDecoder` or a :class:`DepthDecoder`.
        seed: Seed of random crops.

    Attributes:
        normalization: What the pixels are still to go through, on the device.
    """

    def __init__(
        self, dataset: Dataset, crop: ImageCrop, decode: Callable[[Image.Image], Tensor], seed: int = 0
    ) -> None:
        self.dataset, self.crop, self.decode, self.seed = dataset, crop, decode, seed
        self.normalization = crop.normalization
        # In shared memory, so that persistent workers see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels, target = self.load(index)
        seed = int(np.random.SeedSequence((self.seed, int(self._epoch), index)).generate_state(1, np.uint64)[0])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            pixels, labels = self.crop.cut_pair(pixels, target)
        return {"pixels": pixels, "labels": labels}

    def set_epoch(self, epoch: int) -> None:
        """Draws new random crops from now on."""
        self._epoch.fill_(epoch)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Loads the image of a row, uint8 (3, H, W), and its decoded target (H, W), at their stored size.

        Raises:
            ValueError: If one cannot be decoded or they differ in size.
        """
        row = self.dataset[int(index)]
        try:
            pixels, stored = decode_pixels(row["image"]), decode_image(row["target"])
        except Exception as error:  # Pillow's plugins raise almost anything on damaged files.
            raise ValueError(f"row {index} must hold a readable image and target, got {error}") from error
        target, size = self.decode(stored), tuple(pixels.shape[1:])
        if tuple(target.shape) != size:
            raise ValueError(
                f"a mask must be of the size of its image (height, width) {size}, got {tuple(target.shape)} in row "
                f"{index}; resize the masks to their images, to the nearest pixel"
            )
        return pixels, target


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
