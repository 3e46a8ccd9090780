"""The student's tokens, whatever it is: a vision transformer's blocks or a convolutional network's feature maps."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.structure import ViTView, view_vit
from singer_hf.vit.tokens import keep_tokens, map_to_tokens

DEFAULT_IMAGE_SIZE = (224, 224)


class TransformerStudent:
    """Reads a vision transformer's class and patch tokens after its blocks; register tokens are left out.

    Attributes:
        image_size: (height, width) in pixels that the model is configured for, else 224 x 224.
        num_blocks: Number of blocks.
        widths: Token width after each block.
        num_class_tokens: Class and distillation tokens before the patches.
    """

    def __init__(self, view: ViTView) -> None:
        self.view = view
        self.image_size = view.image_size or DEFAULT_IMAGE_SIZE
        self.num_blocks = view.num_blocks
        self.widths = [view.hidden_size] * view.num_blocks
        self.num_class_tokens = view.num_class_tokens
        self._capture: FeatureCapture | None = None

    def grid(self, block: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches for an image of (height, width) pixels; the same for every block."""
        return self.view.grid(*image_size)

    def select(self, blocks: Iterable[int]) -> None:
        """Chooses the blocks to read; the forward pass ends behind the last of them."""
        self._capture = FeatureCapture(self.view, blocks)

    def read(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """Images (B, 3, H, W) -> block index -> tokens (B, C+N, D): class tokens first, then the patches."""
        prefix = self.view.num_prefix_tokens
        return {
            i: keep_tokens(x, self.num_class_tokens, prefix) for i, x in self._capture(pixel_values).outputs.items()
        }


class FeatureMapStudent:
    """Reads the feature maps of a model that returns them as ``hidden_states``: stem and stages of a CNN or of Swin.

    Attributes are those of :class:`TransformerStudent`; a feature map counts as a block and has no class token.
    """

    num_class_tokens = 0

    def __init__(self, model: nn.Module, image_size: tuple[int, int]) -> None:
        self.model = model
        self.image_size = image_size
        example = next(model.parameters())
        maps = _probe(model, torch.zeros(1, 3, *image_size, device=example.device, dtype=example.dtype))
        self.num_blocks = len(maps)
        self.widths = [feature_map.shape[1] for feature_map in maps]
        self._grids = {image_size: [tuple(feature_map.shape[-2:]) for feature_map in maps]}
        self._blocks: tuple[int, ...] = ()

    def grid(self, block: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the feature map ``block`` for an image of (height, width) pixels."""
        return self._grids[image_size][block]

    def select(self, blocks: Iterable[int]) -> None:
        """Chooses the feature maps to read."""
        self._blocks = tuple(blocks)

    def read(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """Images (B, 3, H, W) -> index of the feature map -> tokens (B, N, C)."""
        maps = _feature_maps(self.model, pixel_values)
        return {i: map_to_tokens(maps[i]) for i in self._blocks}


def read_student(model: nn.Module, image_size: tuple[int, int] | None) -> TransformerStudent | FeatureMapStudent:
    """The reader that fits the student.

    Args:
        model: The student.
        image_size: (height, width) of its input in pixels; None is enough for a transformer.

    Raises:
        ValueError: If it is neither a plain vision transformer nor a model with 4-dimensional feature maps.
    """
    try:
        return TransformerStudent(view_vit(model))
    except ValueError as error:
        refusal = error
    try:
        return FeatureMapStudent(model, image_size or DEFAULT_IMAGE_SIZE)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(
            "`student` must be a vision transformer or return feature maps (B, C, rows, columns) as `hidden_states`, "
            f"got {type(model).__name__}. As a transformer: {refusal}. As a feature-map model: {error}"
        ) from error


@torch.no_grad()
def _probe(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, ...]:
    training = model.training
    model.eval()
    try:
        return _feature_maps(model, pixel_values)
    finally:
        model.train(training)


def _feature_maps(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, ...]:
    output = model(pixel_values=pixel_values, output_hidden_states=True)
    maps = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
    if not maps or any(feature_map.ndim != 4 for feature_map in maps):
        raise ValueError("its hidden states are no feature maps")
    return tuple(maps)
