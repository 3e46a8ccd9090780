"""From images to pixel values: the image processor and the size."""

from typing import Any

from torch import nn

from singer_hf.data.batches.given_images import Transform
from singer_hf.data.image_processors import find_image_processor
from singer_hf.data.transforms import eval_transform
from singer_hf.vit.inference import unwrap_peft
from singer_hf.vit.structure import view_vit


def make_transform(model: nn.Module, processor: Any, image_size: int | tuple[int, int] | None) -> Transform:
    """Builds the transform of the images for a model: PIL image -> tensor (3, H, W).

    Args:
        model: The model.
        processor: Image processor, or the folder or Hub id where it is saved; None takes that of the model's folder.
        image_size: Edge, or height and width, in pixels; None takes that of the image processor.

    Raises:
        ValueError: If there is no image processor.
    """
    name = getattr(getattr(unwrap_peft(model), "config", None), "name_or_path", None)
    found = find_image_processor(processor, name)
    if found is None:
        raise ValueError(
            f"`processor` must be an image processor, or the folder or Hub id of one, got {processor!r} and none "
            f"saved with the model {name!r}; load one with `AutoImageProcessor.from_pretrained`, or pass pixel values"
        )
    return eval_transform(found, None if image_size is None else size_pair(image_size))


def check_image_size(model: nn.Module, image_size: int | tuple[int, int] | None) -> None:
    """Checks that whole patches fill images of this size, unless it is the size that the model is built for.

    Args:
        model: The model; one that is no vision transformer takes any size.
        image_size: Edge, or height and width, in pixels, or None.

    Raises:
        ValueError: If they do not, or it is no size.
    """
    if image_size is None:
        return
    size = size_pair(image_size)
    try:
        view = view_vit(model)
    except ValueError:
        return
    nearest = tuple(max(round(edge / patch), 1) * patch for edge, patch in zip(size, view.patch_size, strict=True))
    if size not in (nearest, view.image_size):
        patch = "{} x {}".format(*view.patch_size)
        raise ValueError(
            f"`image_size` must be a multiple of the model's patches of {patch} pixels, got {image_size!r}; the "
            f"nearest size is {nearest}"
        )


def size_pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an edge, or of a height and a width.

    Raises:
        ValueError: If it is neither.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in pair):
        raise ValueError(f"`image_size` must be an edge or (height, width) in pixels, got {image_size!r}")
    return pair
