"""Models as a user gives them to an evaluation: modules, folders and Hub ids."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from singer_hf.data.image_processors import ImageSpec, find_image_processor, image_spec
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.tuner.loading import load_adapter
from singer_hf.vit.inference import unwrap_peft
from singer_hf.vit.loading import load_model


def given_models(
    models: Any, processor: Any = None, device: Any = None, adapter: Any = None, argument: str = "models"
) -> dict[str, EvaluatedModel]:
    """Prepares models for an evaluation.

    Args:
        models: A module, a folder or a Hub id, or a list of these.
        processor: Image processor for all models, or the folder or Hub id of one; None takes that of each model.
        device: Torch device of loaded models; None takes a GPU if there is one. A module stays where it is.
        adapter: SiNGER adapter of the only model, which is a folder or Hub id.
        argument: Name of the argument ``models``, for error messages.

    Returns:
        Name -> model; equal names are numbered.

    Raises:
        ValueError: If there is no model, one has no image processor, or the adapter does not fit.
        FileNotFoundError: If a model does not exist.
    """
    given = list(models) if isinstance(models, list | tuple) else [models]
    if not given:
        raise ValueError(f"`{argument}` must be at least one model, got none")
    if adapter is not None and (len(given) > 1 or isinstance(given[0], nn.Module)):
        raise ValueError("`adapter` goes with one folder or Hub id; give a module with its adapter attached")
    names = _numbered([_name_of(model) for model in given])
    labels = short_names(names)
    return {
        name: _evaluated(model, label, image_spec(_processor(model, name, processor)), adapter, device, argument)
        for name, label, model in zip(names, labels, given, strict=True)
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Returns the last parts of paths, as few as are needed to distinguish them."""
    parts = [Path(name).resolve().parts if Path(name).exists() else Path(name).parts for name in names]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-depth:]) for part in parts]
        if len(set(short)) == len(short):
            break
    return short


def _evaluated(given: Any, label: str, spec: ImageSpec, adapter: Any, device: Any, argument: str) -> EvaluatedModel:
    own = _adapter_of(given) if adapter is None else short_names([os.fspath(adapter)])[0]
    name = label if adapter is None else f"{label} + {own}"
    return EvaluatedModel(name, _load(given, device, adapter, argument), spec, own, _source(given))


def _source(model: Any) -> str:
    """Hash of the Hub id or of the folder's path, empty for a module without one."""
    place = _config_path(model) if isinstance(model, nn.Module) else os.fspath(model)
    if place is None:
        return ""
    return hashlib.sha256(str(Path(place).resolve() if Path(place).exists() else place).encode()).hexdigest()[:12]


def _load(model: Any, device: Any, adapter: Any, argument: str) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(os.fspath(model), argument)
    loaded = loaded if adapter is None else load_adapter(loaded, adapter)
    return loaded.to(place).eval().requires_grad_(False)


def _processor(model: Any, name: str, processor: Any) -> Any:
    found = find_image_processor(processor, _config_path(model) if isinstance(model, nn.Module) else os.fspath(model))
    if found is None:
        raise ValueError(
            f"`processor` (`--processor_name_or_path`) must be given: the model {name!r} has no image processor"
        )
    return found


def _name_of(model: Any) -> str:
    if isinstance(model, nn.Module):
        name = _config_path(model) or type(unwrap_peft(model)).__name__
        return f"{name} + {_adapter_of(model)}" if _adapter_of(model) else name
    return os.fspath(model)


def _adapter_of(model: Any) -> str:
    """Name of the adapter of a module with SiNGER adapters, as far as it has one."""
    if not isinstance(model, nn.Module) or not find_singer_layers(model):
        return ""
    names = getattr(model, "active_adapters", None)
    names = [name for name in (names() if callable(names) else names or []) if name != "default"]
    return ", ".join(names) or "adapter"


def _config_path(model: nn.Module) -> str | None:
    return getattr(getattr(unwrap_peft(model), "config", None), "name_or_path", None) or None


def _numbered(names: list[str]) -> list[str]:
    return [
        f"{name} ({names[:index].count(name) + 1})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]
