"""Heads that are trained on frozen features: linear, segmentation and depth.

All start from normally distributed weights (standard deviation 0.01, DINOv2's choice) drawn from a generator of their
own, so that a head's result does not depend on the other heads of a sweep.
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
        features: Features of one batch of the kind to be fitted, for the width; see ``FrozenFeatures(dense=False)``.
        num_classes: Number C of classes.
        tokens: What to read: "cls", "mean" or "cls+mean".
        num_blocks: How many of the last blocks to read.
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
        self.linear = nn.Linear(self.read(features).shape[1], num_classes)
        _initialise(self.linear, seed)

    def read(self, features: dict[str, Tensor]) -> Tensor:
        """The head's input (B, F) out of "cls" and "mean" (B, K, D)."""
        if self.tokens == "cls+mean":
            return torch.cat([features["cls"][:, -self.num_blocks :].flatten(1), features["mean"][:, -1]], dim=1)
        return features[self.tokens][:, -self.num_blocks :].flatten(1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features of images -> logits (B, C)."""
        return self.linear(self.read(features))


def stacked_logits(heads: Sequence[LinearHead], features: dict[str, Tensor]) -> Tensor:
    """Logits (R, B, C) of R heads that read the same input, by one matrix product."""
    weight = torch.cat([head.linear.weight for head in heads])
    bias = torch.cat([head.linear.bias for head in heads])
    logits = F.linear(heads[0].read(features), weight, bias)
    return logits.unflatten(1, (len(heads), -1)).transpose(0, 1)


class SegmentationHead(nn.Module):
    """BatchNorm and a 1x1 convolution on the patches (the BNHead of DINOv2), or the convolution alone (SiNGER's code).

    Args:
        features: Features of one batch, for the width; see ``FrozenFeatures(dense=True)``.
        num_classes: Number C of classes.
        batch_norm: Whether the patches are normalised per channel first.
        seed: Seed of the weights.
    """

    def __init__(self, features: dict[str, Tensor], num_classes: int, batch_norm: bool = True, seed: int = 0) -> None:
        super().__init__()
        width = features["map"].shape[1]
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.conv = nn.Conv2d(width, num_classes, kernel_size=1)
        _initialise(self.conv, seed)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features of images -> logits (B, C, h, w) on the patch grid."""
        return self.conv(self.norm(features["map"]))


class DepthHead(nn.Module):
    """A 1x1 convolution on each patch beside the image's global token, with one logit per bin of depth.

    The bins are read out by ``DepthTask``. Upsampling the logits equals upsampling the features, as both are linear.

    Args:
        features: Features of one batch, for the width; see ``FrozenFeatures(dense=True)``.
        num_bins: Number of bins.
        seed: Seed of the weights.
    """

    def __init__(self, features: dict[str, Tensor], num_bins: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features["map"].shape[1] + features["global"].shape[1], num_bins, kernel_size=1)
        _initialise(self.conv, seed)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features of images -> logits (B, bins, h, w) on the patch grid."""
        patches, token = features["map"], features["global"]
        width = patches.shape[1]
        # The global token adds the same logits to every patch: no need to repeat it over the grid.
        shared = F.linear(token, self.conv.weight[:, width:, 0, 0], self.conv.bias)
        return F.conv2d(patches, self.conv.weight[:, :width]) + shared[..., None, None]


def group_heads(heads: Sequence[nn.Module]) -> list[list[int]]:
    """Indices of heads that can share a matrix product: linear heads of the same input; others stand alone."""
    groups: dict[object, list[int]] = {}
    for i, head in enumerate(heads):
        is_linear = isinstance(head, LinearHead)
        key = (head.tokens, head.num_blocks, head.linear.weight.shape) if is_linear else i
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def group_logits(heads: Sequence[nn.Module], features: dict[str, Tensor]) -> Tensor:
    """Logits (R, B, C, ...) of the R heads of one group."""
    return heads[0](features)[None] if len(heads) == 1 else stacked_logits(heads, features)


def _initialise(layer: nn.Linear | nn.Conv2d, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(0.0, _WEIGHT_DEVIATION, generator=generator)
        layer.bias.zero_()
