"""Crops of an image for a frozen model, and the same crops of its mask or depth map."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from singer_hf.data.image_processors import ImageSpec
from singer_hf.data.pixels import PixelNormalization
from singer_hf.data.transforms import to_rgb

CropKind = Literal["center", "squash", "whole", "random_crop", "random_resized_crop"]


@dataclass(frozen=True)
class ImageCrop:
    """A callable image -> normalised tensor (3, h, w). `cut_pair` cuts an image and its target alike.

    Its ``repr`` describes it completely, as it is part of the fingerprint of a feature cache. Images are resized by
    ``interpolation``, targets always to the nearest pixel: the mean of two classes or depths has no meaning.

    Attributes:
        kind: "center" crops the middle after resizing the shorter side; "squash" resizes to ``size`` without keeping
            the aspect; "whole" only resizes the shorter side of the image and leaves the target as it is;
            "random_crop" crops anywhere and mirrors half of the images; "random_resized_crop" also scales the crop.
        size: (height, width) of the result in pixels; not used by "whole".
        resize: Length of the shorter side before the crop in pixels; not used by "squash" and "random_resized_crop".
        mean: Mean of each channel, of pixels in [0, 1].
        std: Standard deviation of each channel, likewise.
        interpolation: Interpolation of images.
        min_scale: Smallest share of the image's area in a random resized crop.
    """

    kind: CropKind
    size: tuple[int, int]
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: InterpolationMode = InterpolationMode.BICUBIC
    min_scale: float = 0.08

    def __post_init__(self) -> None:
        if self.kind not in get_args(CropKind):
            raise ValueError(f"`kind` must be one of {get_args(CropKind)}, got {self.kind!r}")
        if self.kind in ("center", "random_crop") and self.resize < max(self.size):
            raise ValueError(f"`resize` must be at least the crop's {max(self.size)} pixels, got {self.resize!r}")

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Cuts an image, or its pixels (3, H, W), to normalised float32 (3, h, w)."""
        return self.normalization(self.to_pixels(image))

    def to_pixels(self, image: Image.Image | Tensor) -> Tensor:
        """Cuts an image, or its pixels (3, H, W), to uint8 (3, h, w), not normalised."""
        pixels = image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(to_rgb(image))
        return self._cut(pixels).contiguous()

    def cut_pair(self, pixels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cuts pixels uint8 (3, H, W) to uint8 (3, h, w), and a target (H, W) to (h, w) of its own dtype."""
        if self.kind == "whole":
            return self.to_pixels(pixels), target
        image, mask = self._cut(tv_tensors.Image(pixels), tv_tensors.Mask(target[None]))
        return image.as_subclass(Tensor).contiguous(), mask.as_subclass(Tensor)[0]

    @cached_property
    def normalization(self) -> PixelNormalization:
        """What follows the cut."""
        return PixelNormalization(self.mean, self.std)

    @cached_property
    def _cut(self) -> v2.Compose:
        how = {"interpolation": self.interpolation, "antialias": True}
        shorter, flip = v2.Resize(self.resize, **how), v2.RandomHorizontalFlip()
        steps = {
            "center": lambda: [shorter, v2.CenterCrop(self.size)],
            "squash": lambda: [v2.Resize(self.size, **how)],
            "whole": lambda: [shorter],
            "random_crop": lambda: [shorter, v2.RandomCrop(self.size), flip],
            "random_resized_crop": lambda: [v2.RandomResizedCrop(self.size, (self.min_scale, 1.0), **how), flip],
        }
        return v2.Compose(steps[self.kind]())


def crop_for(
    spec: ImageSpec, kind: CropKind, size: tuple[int, int], resize: int, min_scale: float = 0.08
) -> ImageCrop:
    """Makes a crop with the normalisation and interpolation of a model's image processor.

    Args:
        spec: Normalisation and interpolation.
        kind: Kind of the crop.
        size: (height, width) of the result in pixels.
        resize: Length of the shorter side before the crop in pixels.
        min_scale: Smallest share of the image's area in a random resized crop.
    """
    return ImageCrop(kind, size, resize, spec.mean, spec.std, spec.interpolation, min_scale)
