"""Extractors: one batch of images to feature maps or tokens of the chosen blocks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from singer_hf.tuner.layer import find_singer_layers, flowing_tokens
from singer_hf.vit.block_indices import resolve_layers
from singer_hf.vit.feature_maps import feature_maps
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import unwrap_peft
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import map_to_tokens, split_tokens, tokens_to_map
from singer_hf.vit.view import ViTView

OUTPUTS = ("map", "tokens")


class BlockFeatures:
    """Features after the blocks of a vision transformer.

    A block with SiNGER adapters gives its refined tokens, which also flow on into the later blocks; an adapter that
    is disabled or bypassed changes nothing.

    Args:
        model: The model, or its ``PeftModel``.
        view: The view of the model.
        layers: Block indices from -L to L - 1.
        output: ``"map"`` or ``"tokens"``.
        norm: Whether the model's final norm is applied to the tokens of every chosen block.

    Raises:
        ValueError: If a block does not exist, or the model has no final norm.
    """

    def __init__(self, model: nn.Module, view: ViTView, layers: list[int], output: str, norm: bool) -> None:
        if norm and view.final_norm is None:
            raise ValueError("`norm` must be False for a model without a final norm, got True; leave it out")
        self.model, self.view, self.output, self.norm = model, view, output, norm
        self.layers = resolve_layers("layers", layers, view.num_blocks)
        self.capture = FeatureCapture(view, self.layers)
        self.adapters = find_singer_layers(model)

    def __call__(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """Images (B, 3, H, W) -> block index -> map (B, D, rows, columns) or tokens (B, P+N, D).

        Raises:
            ValueError: If the model does not take images of their size.
        """
        weight = self.view.patch_embedding.weight
        # The capture sees the blocks inside of the adapters.
        outputs = flowing_tokens(self.adapters, self._outputs(pixel_values.to(weight.device, weight.dtype)))
        return {index: self._finish(index, outputs[index], pixel_values) for index in self.layers}

    def _outputs(self, pixel_values: Tensor) -> dict[int, Tensor]:
        size = tuple(pixel_values.shape[-2:])
        try:
            return self.capture(pixel_values).outputs
        except (RuntimeError, AssertionError) as error:
            if self.view.image_size in (None, size) or isinstance(error, torch.OutOfMemoryError):
                raise
            name, built = type(unwrap_peft(self.model)).__name__, "{} x {}".format(*self.view.image_size)
            raise ValueError(
                f"`image_size` must be {built} for this {name}, which does not interpolate, got images of "
                f"{size[0]} x {size[1]} pixels ({error}); a timm model takes other sizes with `dynamic_img_size=True`"
            ) from error

    def _finish(self, index: int, tokens: Tensor, pixel_values: Tensor) -> Tensor:
        if self.norm:
            tokens = self.view.final_norm(tokens)
        if self.output == "tokens":
            return tokens
        patches = split_tokens(tokens, self.view.num_prefix_tokens)[1]
        return tokens_to_map(patches, self.view.grid(*pixel_values.shape[-2:]))


class StageFeatures:
    """Features of a model that returns feature maps as ``hidden_states``: stem and stages of a CNN or of Swin.

    Args:
        model: The model.
        layers: Indices of feature maps, negative ones from the end.
        output: ``"map"`` or ``"tokens"``.
    """

    def __init__(self, model: nn.Module, layers: list[int], output: str) -> None:
        self.model, self.layers, self.output = model, layers, output

    def __call__(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """Images (B, 3, H, W) -> index of the feature map -> map (B, C, rows, columns) or tokens (B, N, C).

        Raises:
            ValueError: If the model returns no feature maps, or one of the chosen ones does not exist.
        """
        example = next(self.model.parameters())
        maps = feature_maps(self.model, pixel_values.to(example.device, example.dtype))
        chosen = {index: maps[index] for index in resolve_layers("layers", self.layers, len(maps))}
        return chosen if self.output == "map" else {index: map_to_tokens(found) for index, found in chosen.items()}


Extractor = BlockFeatures | StageFeatures


def make_extractor(model: nn.Module, layers: int | Iterable[int] | None, output: str, norm: bool) -> Extractor:
    """Returns the extractor that fits the model.

    Args:
        model: A vision transformer, with or without adapters, or a model with feature maps.
        layers: Block indices, negative ones from the end; None takes the last block.
        output: ``"map"`` or ``"tokens"``.
        norm: Whether the final norm is applied.

    Raises:
        ValueError: If an argument is out of its range, or the model lacks a block or the norm.
    """
    if output not in OUTPUTS:
        raise ValueError(f"`output` must be one of {OUTPUTS}, got {output!r}")
    chosen = _layer_list(layers)
    try:
        view = view_vit(model)
    except ValueError as refusal:
        if norm:
            raise ValueError(
                f"`norm` must be False for a model that is no vision transformer, got True: {refusal}"
            ) from refusal
        return StageFeatures(model, chosen, output)
    return BlockFeatures(model, view, chosen, output, norm)


def _layer_list(layers: int | Iterable[int] | None) -> list[int]:
    if layers is None or isinstance(layers, int):
        return [-1 if layers is None else layers]
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise ValueError(f"`layers` must be None, an integer or a list of integers, got {layers!r}")
    chosen = list(layers)
    if not chosen:
        raise ValueError("`layers` must name at least one block, got []; leave it out for the last block")
    return chosen
