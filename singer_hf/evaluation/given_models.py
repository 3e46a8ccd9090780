"""Models as a user gives them to an evaluation: modules, folders and Hub ids."""

import os
from typing import Any

import torch
from torch import nn

from singer_hf.data.image_processors import image_spec, load_image_processor
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.evaluate_models import short_names
from singer_hf.vit.inference import unwrap_peft
from singer_hf.vit.loading import load_model


def given_models(models: Any, processor: Any = None, device: Any = None) -> dict[str, EvaluatedModel]:
    """Prepares models for an evaluation.

    Args:
        models: A module, a folder or a Hub id, or a list of these.
        processor: Image processor for all models, or the folder or Hub id of one; None takes that of each model.
        device: Torch device of loaded models; None takes a GPU if there is one. A module stays where it is.

    Returns:
        Name -> model; equal names are numbered.

    Raises:
        ValueError: If there is no model, or one has no image processor.
        FileNotFoundError: If a model does not exist.
    """
    given = list(models) if isinstance(models, list | tuple) else [models]
    if not given:
        raise ValueError("`models` must be at least one model, got none")
    names = _numbered([_name_of(model) for model in given])
    labels = short_names(names)
    return {
        name: EvaluatedModel(label, _load(model, device), image_spec(_processor(model, name, processor)))
        for name, label, model in zip(names, labels, given, strict=True)
    }


def _load(model: Any, device: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(os.fspath(model), "models").to(place).eval().requires_grad_(False)


def _processor(model: Any, name: str, processor: Any) -> Any:
    if processor is not None and not isinstance(processor, str | os.PathLike):
        return processor
    place = processor or (_config_path(model) if isinstance(model, nn.Module) else model)
    found = load_image_processor(os.fspath(place) if place else None)
    if found is None:
        raise ValueError(f"`processor` must be given: the model {name!r} has no image processor")
    return found


def _name_of(model: Any) -> str:
    if isinstance(model, nn.Module):
        return _config_path(model) or type(unwrap_peft(model)).__name__
    return os.fspath(model)


def _config_path(model: nn.Module) -> str | None:
    return getattr(getattr(unwrap_peft(model), "config", None), "name_or_path", None) or None


def _numbered(names: list[str]) -> list[str]:
    return [
        f"{name} ({names[:index].count(name) + 1})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]
