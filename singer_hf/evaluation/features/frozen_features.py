"""What a probe reads of a frozen model, as one callable: (model, images) -> named tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens, tokens_to_map


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of the last blocks of a vision transformer, or of the last feature map of a convolutional network.

    The result holds, in float32 and K = ``num_blocks`` (oldest block first, for a feature map K = 1):

    - ``dense=False``: "mean" (B, K, D), the mean patch, and "cls" (B, K, D), the class token, where the model has one;
    - ``dense=True``: "map" (B, K * D, h, w), the patches on their grid, and "global" (B, K * D), the class token, or
      the mean patch of models without one.

    Attributes:
        num_blocks: How many of the last blocks to read, at least 1.
        norm: Whether the model's final norm is applied to each of them; False reads the raw tokens before it. A
            feature map is read as it is.
        dense: Whether to keep the patches.
    """

    num_blocks: int = 1
    norm: bool = False
    dense: bool = False

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ValueError(f"`num_blocks` must be at least 1, got {self.num_blocks!r}")

    @torch.no_grad()
    def __call__(self, model: nn.Module, pixel_values: Tensor) -> dict[str, Tensor]:
        """Features of ``pixel_values`` (B, 3, H, W); the model should be in evaluation mode.

        Raises:
            ValueError: If the model is neither a plain vision transformer nor gives feature maps, or lacks blocks.
        """
        blocks = read_blocks(model, pixel_values, self.num_blocks, self.norm)
        maps = torch.stack([patches for _, patches in blocks], dim=1).float()  # (B, K, D, h, w)
        means = maps.mean(dim=(-2, -1))
        has_class = blocks[0][0] is not None
        classes = torch.stack([token for token, _ in blocks], dim=1).float() if has_class else None
        if self.dense:
            return {"map": maps.flatten(1, 2), "global": (classes if has_class else means).flatten(1)}
        return {"mean": means, "cls": classes} if has_class else {"mean": means}


def read_blocks(
    model: nn.Module, pixel_values: Tensor, num_blocks: int, norm: bool
) -> list[tuple[Tensor | None, Tensor]]:
    """(class token (B, D) or None, patch map (B, D, h, w)) of each of the last ``num_blocks`` blocks, oldest first."""
    try:
        view = view_vit(model)
    except ValueError as refusal:
        return [(None, _last_feature_map(model, pixel_values, num_blocks, refusal))]
    if num_blocks > view.num_blocks:
        raise ValueError(f"`num_blocks` must be at most the model's {view.num_blocks} blocks, got {num_blocks!r}")
    if norm and view.final_norm is None:
        raise ValueError("`norm` must be False for a model without a final norm, got True")
    outputs = capture_features(model, pixel_values, range(view.num_blocks - num_blocks, view.num_blocks))
    grid, blocks = view.grid(*pixel_values.shape[-2:]), []
    for index in sorted(outputs):
        tokens = view.final_norm(outputs[index]) if norm else outputs[index]
        prefix, patches = split_tokens(tokens, view.num_prefix_tokens)
        blocks.append((prefix[:, 0] if view.num_class_tokens else None, tokens_to_map(patches, grid)))
    return blocks


def _last_feature_map(model: nn.Module, pixel_values: Tensor, num_blocks: int, refusal: ValueError) -> Tensor:
    """Last feature map (B, C, h, w) of a model that returns them as ``hidden_states``, as CNNs of transformers do."""
    if num_blocks != 1:
        raise ValueError(
            f"`num_blocks` must be 1 for a model that is no vision transformer, got {num_blocks!r}: {refusal}"
        )
    try:
        output = model(pixel_values=pixel_values, output_hidden_states=True)
        maps = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
    except (TypeError, AttributeError) as error:
        raise _neither(model, refusal) from error
    if not maps or maps[-1].ndim != 4:
        raise _neither(model, refusal)
    return maps[-1]


def _neither(model: nn.Module, refusal: ValueError) -> ValueError:
    return ValueError(
        "`model` must be a vision transformer or return feature maps (B, C, rows, columns) as `hidden_states`, got "
        f"{type(model).__name__}. {refusal}"
    )
