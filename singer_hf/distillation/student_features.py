"""Extraction of a student's tokens, from a vision transformer's blocks or a convolutional network's feature maps."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from singer_hf.vit.feature_maps import feature_maps
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import keep_tokens, map_to_tokens
from singer_hf.vit.view import ViTView

DEFAULT_IMAGE_SIZE = (224, 224)


class TransformerExtractor:
    """Extracts a vision transformer's class and patch tokens after its blocks; register tokens are left out.

    Attributes:
        image_size: (height, width) in pixels that the model is configured for, else 224 x 224.
        num_blocks: Number of blocks.
        widths: Token width after each block.
        num_class_tokens: Class and distillation tokens before the patches.
        capture: The capture of the selected blocks.
    """

    def __init__(self, view: ViTView) -> None:
        self.view = view
        self.image_size = view.image_size or DEFAULT_IMAGE_SIZE
        self.num_blocks = view.num_blocks
        self.widths = [view.hidden_size] * view.num_blocks
        self.num_class_tokens = view.num_class_tokens
        self.capture: FeatureCapture | None = None

    def grid(self, block: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches for an image of (height, width) pixels; the same after every block."""
        return self.view.grid(*image_size)

    def select(self, blocks: Iterable[int]) -> None:
        """Selects the blocks to extract from; the forward pass ends after the last of them."""
        self.capture = FeatureCapture(self.view, blocks)

    def __call__(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """Images (B, 3, H, W) -> block index -> tokens (B, C+N, D): class tokens first, then the patches."""
        prefix, outputs = self.view.num_prefix_tokens, self.capture(pixel_values).outputs
        return {i: keep_tokens(tokens, self.num_class_tokens, prefix) for i, tokens in outputs.items()}


class FeatureMapExtractor:
    """Extracts the feature maps that a model returns as ``hidden_states``: stem and stages of a CNN or of Swin.

    A feature map counts as a block and has no class token. The attributes are those of :class:`TransformerExtractor`.
    """

    num_class_tokens = 0
    capture = None

    def __init__(self, model: nn.Module, image_size: tuple[int, int]) -> None:
        self.model = model
        self.image_size = image_size
        example = next(model.parameters())
        with evaluation_mode(model):
            maps = feature_maps(model, torch.zeros(1, 3, *image_size, device=example.device, dtype=example.dtype))
        self.num_blocks = len(maps)
        self.widths = [feature_map.shape[1] for feature_map in maps]
        self._grids = {image_size: [tuple(feature_map.shape[-2:]) for feature_map in maps]}
        self._blocks: tuple[int, ...] = ()

    def grid(self, block: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of feature map ``block`` for an image of (height, width) pixels."""
        return self._grids[image_size][block]

    def select(self, blocks: Iterable[int]) -> None:
        """Selects the feature maps to extract."""
        self._blocks = tuple(blocks)

    def __call__(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """Images (B, 3, H, W) -> index of the feature map -> tokens (B, N, C)."""
        maps = feature_maps(self.model, pixel_values)
        return {i: map_to_tokens(maps[i]) for i in self._blocks}


def check_two_models(student: nn.Module, teacher: nn.Module) -> None:
    """Checks that freezing the teacher does not freeze the student.

    Raises:
        ValueError: If they have weights in common.
    """
    weights = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in weights for parameter in teacher.parameters()):
        raise ValueError(
            "`student` and `teacher` must not share weights, which would be frozen with the teacher; to distil "
            "a model into itself pass `copy.deepcopy(teacher)` as the student"
        )


def make_student_extractor(
    model: nn.Module, image_size: tuple[int, int] | None
) -> TransformerExtractor | FeatureMapExtractor:
    """Returns the extractor that fits the student.

    Args:
        model: The student.
        image_size: (height, width) of its input in pixels. None: the size in its config, else 224 x 224.

    Raises:
        ValueError: If it is neither a plain vision transformer nor a model with 4-dimensional feature maps.
    """
    try:
        return TransformerExtractor(view_vit(model))
    except ValueError as error:
        refusal = error
    try:
        return FeatureMapExtractor(model, image_size or DEFAULT_IMAGE_SIZE)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(
            "`student` must be a vision transformer or return feature maps (B, C, rows, columns) as `hidden_states`, "
            f"got {type(model).__name__}. As a transformer: {refusal}. As a feature-map model: {error}"
        ) from error
