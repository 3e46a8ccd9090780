"""Features of a frozen model for heads and probes, as one callable: (model, images) -> named tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from singer_hf.tuner.layer import find_singer_layers, flowing_tokens
from singer_hf.vit.feature_maps import feature_maps
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens, tokens_to_map


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of the last blocks of a vision transformer, or of the last feature map of a convolutional network.

    The result holds, in float32 and with K = ``num_blocks`` (oldest block first, for a feature map K = 1):

    - ``dense=False``: "mean" (B, K, D), the mean patch, and "cls" (B, K, D), the class token, where the model has one;
    - ``dense=True``: "map" (B, K * D, h, w), the patches on their grid, and "global" (B, K * D), the class token, or
      the mean patch of models without one.

    Attributes:
        num_blocks: Number of last blocks, at least 1.
        norm: Whether the model's final norm is applied to each of them; False gives the tokens before it. It does not
            apply to feature maps.
        dense: Whether to return the patches instead of their mean.
    """

    num_blocks: int = 1
    norm: bool = False
    dense: bool = False

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ValueError(f"`num_blocks` must be at least 1, got {self.num_blocks!r}")

    @torch.no_grad()
    def __call__(self, model: nn.Module, pixel_values: Tensor) -> dict[str, Tensor]:
        """Extracts the features of ``pixel_values`` (B, 3, H, W); the model should be in evaluation mode.

        Raises:
            ValueError: As :func:`extract_blocks`.
        """
        blocks = extract_blocks(model, pixel_values, self.num_blocks, self.norm)
        maps = torch.stack([patches for _, patches in blocks], dim=1).float()  # (B, K, D, h, w)
        means = maps.mean(dim=(-2, -1))
        has_class = blocks[0][0] is not None
        classes = torch.stack([token for token, _ in blocks], dim=1).float() if has_class else None
        if self.dense:
            return {"map": maps.flatten(1, 2), "global": (classes if has_class else means).flatten(1)}
        return {"mean": means, "cls": classes} if has_class else {"mean": means}


def extract_blocks(
    model: nn.Module, pixel_values: Tensor, num_blocks: int, norm: bool
) -> list[tuple[Tensor | None, Tensor]]:
    """Extracts class token and patches of each of the last blocks, oldest first.

    Args:
        model: The model.
        pixel_values: Images (B, 3, H, W).
        num_blocks: Number of blocks; 1 for a model with feature maps.
        norm: Whether the final norm is applied.

    Returns:
        (class token (B, D) or None, patch map (B, D, h, w)) of each block.

    Raises:
        ValueError: If the model lacks blocks or a final norm, or is neither a vision transformer nor has feature maps.
    """
    try:
        view = view_vit(model)
    except ValueError as refusal:
        return [(None, _last_feature_map(model, pixel_values, num_blocks, refusal))]
    if num_blocks > view.num_blocks:
        raise ValueError(f"`num_blocks` must be at most the model's {view.num_blocks} blocks, got {num_blocks!r}")
    if norm and view.final_norm is None:
        raise ValueError("`norm` must be False for a model without a final norm, got True")
    outputs = capture_features(model, pixel_values, range(view.num_blocks - num_blocks, view.num_blocks))
    outputs = flowing_tokens(find_singer_layers(model), outputs)
    grid, blocks = view.grid(*pixel_values.shape[-2:]), []
    for index in sorted(outputs):
        tokens = view.final_norm(outputs[index]) if norm else outputs[index]
        prefix, patches = split_tokens(tokens, view.num_prefix_tokens)
        blocks.append((prefix[:, 0] if view.num_class_tokens else None, tokens_to_map(patches, grid)))
    return blocks


def _last_feature_map(model: nn.Module, pixel_values: Tensor, num_blocks: int, refusal: ValueError) -> Tensor:
    if num_blocks != 1:
        raise ValueError(
            f"`num_blocks` must be 1 for a model that is no vision transformer, got {num_blocks!r}: {refusal}"
        )
    try:
        return feature_maps(model, pixel_values)[-1]
    except ValueError as error:
        raise ValueError(
            "`model` must be a vision transformer or return feature maps (B, C, rows, columns) as `hidden_states`, "
            f"got {type(model).__name__}. As a transformer: {refusal}. As a feature-map model: {error}"
        ) from error
