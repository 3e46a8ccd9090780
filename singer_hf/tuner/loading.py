"""Saved adapters, loaded onto a model."""

import os

from peft import PeftModel
from safetensors import SafetensorError
from torch import nn


def load_adapter(model: nn.Module, folder: str | os.PathLike, is_trainable: bool = False) -> PeftModel:
    """Loads a SiNGER adapter onto a model, whose blocks are wrapped in place.

    Args:
        model: The model of which the adapter was made, with any head.
        folder: Local folder or Hub id of the adapter.
        is_trainable: Whether the adapter is trained on; otherwise it is frozen.

    Raises:
        ValueError: If there is no adapter, it does not fit the model, or its file is cut or damaged.
    """
    try:
        return PeftModel.from_pretrained(model, os.fspath(folder), is_trainable=is_trainable)
    except SafetensorError as error:
        raise ValueError(
            f"`adapter_name_or_path` must hold the whole adapter, its weights in {os.fspath(folder)!r} are cut or "
            f"damaged ({error}); copy the folder again"
        ) from error
