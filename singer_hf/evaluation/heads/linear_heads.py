"""Heads that are trained on frozen features: linear, segmentation and depth.

Weights start normally distributed with a standard deviation of 0.01, as in DINOv2, drawn from a generator of the
head, so that its result does not depend on the other heads of a sweep.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tokens = Literal["cls", "mean", "cls+mean"]
_WEIGHT_DEVIATION = 0.01


class LinearHead(nn.Module):
    """A linear classifier on the class token, the mean patch or both.

    "cls" and "mean" concatenate the last ``num_blocks`` blocks; "cls+mean" takes their class tokens and the mean patch
    of the last block, as DINOv2 does (``create_linear_input`` in its eval/linear.py).

    Args:
        features: Features of one batch, "cls" and "mean" (B, K, D), which give the width; see ``FrozenFeatures``.
        num_classes: Number C of classes.
        tokens: Input of the head: "cls", "mean" or "cls+mean".
        num_blocks: Number of last blocks in the input.
        seed: Seed of the weights.

    Raises:
        ValueError: If ``tokens`` is unknown, the model has no class token or the features hold fewer blocks.
    """

    def __init__(
        self, features: dict[str, Tensor], num_classes: int, tokens: Tokens = "cls", num_blocks: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        if tokens not in get_args(Tokens):
            raise ValueError(f"`tokens` must be one of {get_args(Tokens)}, got {tokens!r}")
        if "cls" in tokens and "cls" not in features:
            raise ValueError(f'`tokens` must be "mean" for a model without class token, got {tokens!r}')
        if not 1 <= num_blocks <= features["mean"].shape[1]:
            raise ValueError(
                f"`num_blocks` must be within 1 and the {features['mean'].shape[1]} kept blocks, got {num_blocks!r}"
            )
        self.tokens, self.num_blocks = tokens, num_blocks
        self.linear = nn.Linear(self.select(features).shape[1], num_classes)
        _initialise(self.linear, seed)

    def select(self, features: dict[str, Tensor]) -> Tensor:
        """Selects the input (B, F) of the head from "cls" and "mean" (B, K, D)."""
        if self.tokens == "cls+mean":
            return torch.cat([features["cls"][:, -self.num_blocks :].flatten(1), features["mean"][:, -1]], dim=1)
        return features[self.tokens][:, -self.num_blocks :].flatten(1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Computes logits (B, C) from "cls" and "mean" (B, K, D)."""
        return self.linear(self.select(features))


def stacked_logits(heads: Sequence[LinearHead], features: dict[str, Tensor]) -> Tensor:
    """Logits (R, B, C) of R heads with the same input, by one matrix product."""
    weight = torch.cat([head.linear.weight for head in heads])
    bias = torch.cat([head.linear.bias for head in heads])
    logits = F.linear(heads[0].select(features), weight, bias)
    return logits.unflatten(1, (len(heads), -1)).transpose(0, 1)


class SegmentationHead(nn.Module):
    """A 1x1 convolution on the patches, after a BatchNorm as in DINOv2's BNHead or without as in SiNGER's code.

    Args:
        features: Features of one batch with "map" (B, D, h, w), which gives the width; see ``FrozenFeatures``.
        num_classes: Number C of classes.
        batch_norm: Whether a BatchNorm comes first.
        seed: Seed of the weights.
    """

    def __init__(self, features: dict[str, Tensor], num_classes: int, batch_norm: bool = True, seed: int = 0) -> None:
        super().__init__()
        width = features["map"].shape[1]
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.conv = nn.Conv2d(width, num_classes, kernel_size=1)
        _initialise(self.conv, seed)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Computes logits (B, C, h, w) on the patch grid from "map" (B, D, h, w)."""
        return self.conv(self.norm(features["map"]))


class DepthHead(nn.Module):
    """A 1x1 convolution on each patch and the global token of the image, with one logit per bin of depth.

    ``DepthTask`` turns the bins into a depth. Upsampling the logits equals upsampling the features: both are linear.

    Args:
        features: Features of one batch, "map" (B, D, h, w) and "global" (B, D), which give the width.
        num_bins: Number of bins.
        seed: Seed of the weights.
    """

    def __init__(self, features: dict[str, Tensor], num_bins: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features["map"].shape[1] + features["global"].shape[1], num_bins, kernel_size=1)
        _initialise(self.conv, seed)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Computes logits (B, bins, h, w) on the patch grid from "map" (B, D, h, w) and "global" (B, D)."""
        patches, token = features["map"], features["global"]
        width = patches.shape[1]
        # The global token adds the same logits to every patch, so it is not repeated over the grid.
        shared = F.linear(token, self.conv.weight[:, width:, 0, 0], self.conv.bias)
        return F.conv2d(patches, self.conv.weight[:, :width]) + shared[..., None, None]


def group_heads(heads: Sequence[nn.Module]) -> list[list[int]]:
    """Groups the indices of heads that can share a matrix product: linear heads with the same input."""
    groups: dict[object, list[int]] = {}
    for i, head in enumerate(heads):
        is_linear = isinstance(head, LinearHead)
        key = (head.tokens, head.num_blocks, head.linear.weight.shape) if is_linear else i
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def group_logits(heads: Sequence[nn.Module], features: dict[str, Tensor]) -> Tensor:
    """Logits (R, B, C) or (R, B, C, h, w) of the R heads of one group of :func:`group_heads`."""
    return heads[0](features)[None] if len(heads) == 1 else stacked_logits(heads, features)


def _initialise(layer: nn.Linear | nn.Conv2d, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(0.0, _WEIGHT_DEVIATION, generator=generator)
        layer.bias.zero_()
