"""Dense prediction on images of any size by a window of the size that the head was trained at."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from singer_hf.evaluation.features.feature_loaders import FeaturesFn


def sliding_window(
    predict: Callable[[Tensor], Tensor], pixel_values: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Computes logits (B, C, H, W) at full size: the mean over all windows that cover a pixel.

    Windows are ``stride`` apart; the last of a row or column ends at the border. An image smaller than the window is
    padded with zeros (the mean colour after normalisation) at its right and bottom, and the result is cropped. The
    scheme is that of mmsegmentation's ``slide_inference``.

    Args:
        predict: Images (B, 3, h, w) of the window's size -> logits (B, C, h', w') of any resolution.
        pixel_values: Images (B, 3, H, W) of any size.
        window: (height, width) of the window in pixels.
        stride: (vertical, horizontal) step in pixels, at least 1 and at most the window.

    Raises:
        ValueError: If ``stride`` is out of range.
    """
    if not all(0 < step <= size for step, size in zip(stride, window, strict=True)):
        raise ValueError(f"`stride` must be within 1 and the window {window}, got {stride!r}")
    height, width = pixel_values.shape[-2:]
    padding = (0, max(0, window[1] - width), 0, max(0, window[0] - height))
    padded = F.pad(pixel_values, padding)
    rows, columns = (_starts(padded.shape[2 + i], window[i], stride[i]) for i in range(2))
    total, covered = 0, padded.new_zeros(padded.shape[-2:])
    for top in rows:
        for left in columns:
            tile = padded[..., top : top + window[0], left : left + window[1]]
            logits = F.interpolate(predict(tile), size=window, mode="bilinear", align_corners=False)
            if isinstance(total, int):
                total = logits.new_zeros(*logits.shape[:2], *padded.shape[-2:])
            total[..., top : top + window[0], left : left + window[1]] += logits
            covered[top : top + window[0], left : left + window[1]] += 1
    return (total / covered)[..., :height, :width]


def head_predictor(model: nn.Module, features_fn: FeaturesFn, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns a function from images (B, 3, h, w) to logits (B, C, h', w'), after setting evaluation mode.

    Args:
        model: The frozen model.
        features_fn: (model, images) -> features.
        head: The trained head.
    """

    @torch.no_grad()
    def predict(pixel_values: Tensor) -> Tensor:
        return head(features_fn(model, pixel_values))

    model.eval()
    head.eval()
    return predict


def _starts(size: int, window: int, stride: int) -> list[int]:
    steps = -(-(size - window) // stride)
    return [min(i * stride, size - window) for i in range(steps + 1)]
