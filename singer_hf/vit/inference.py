"""Running a model for measurements: evaluation mode, the model inside a PeftModel, batches of images."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_WITHOUT_FLOAT64 = ("mps",)


def pixel_batches(images: Iterable) -> Iterator[Tensor]:
    """Yields pixel values (B, 3, H, W) from batches in any of the supported forms; empty batches are skipped.

    Args:
        images: Batches of pixel values (B, 3, H, W), dicts with ``"pixel_values"``, or a single batch.

    Raises:
        ValueError: If pixel values do not have four dimensions.
    """
    for batch in [images] if isinstance(images, Tensor) else images:
        pixel_values = batch if isinstance(batch, Tensor) else batch["pixel_values"]
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`images` must hold batches of pixel values (B, 3, H, W), got shape {tuple(pixel_values.shape)}"
            )
        if len(pixel_values):
            yield pixel_values


def count_batches(images: Iterable) -> int | None:
    """Number of batches of pixel values (B, 3, H, W), or None for a stream of unknown length."""
    if isinstance(images, Tensor):
        return 1
    return len(images) if hasattr(images, "__len__") else None


def unwrap_peft(model: nn.Module) -> nn.Module:
    """The model inside a ``PeftModel``; any other model unchanged."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def to_float64(tensor: Tensor) -> Tensor:
    """Returns a tensor (...) in float64, on the CPU if its device does not have that type (Apple's ``mps``)."""
    return (tensor.cpu() if tensor.device.type in _WITHOUT_FLOAT64 else tensor).double()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context with the model in eval mode and without gradients; every module gets its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
