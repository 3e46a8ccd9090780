"""Models of an audit: modules, folders and Hub ids, with their adapters and names."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from singer_hf.cards.privacy import without_paths
from singer_hf.configs import TRAINED, find
from singer_hf.evaluation.results.card import has_student_card
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.tuner.loading import load_adapter
from singer_hf.vit.inference import unwrap_peft
from singer_hf.vit.loading import load_model

PROJECTORS = Path("projectors", "model.safetensors")


@dataclass(frozen=True)
class NamedModel:
    """A model that is audited.

    Attributes:
        label: Name in tables and figures.
        path: Folder or Hub id, or None for a module without one.
        model: The model, with its adapter if it has one.
    """

    label: str
    path: str | None
    model: nn.Module

    @property
    def role(self) -> Literal["teacher", "student"]:
        """``"student"`` for a folder that a distillation has written."""
        folder = Path(self.path or "")
        is_student = self.path is not None and ((folder / PROJECTORS).is_file() or has_student_card(folder))
        return "student" if is_student else "teacher"

    @property
    def projectors(self) -> Path | None:
        """The file of the student's projectors, None without one."""
        file = Path(self.path or "", PROJECTORS)
        return file if self.path is not None and file.is_file() else None


def load_models(
    model: Any, adapter_name_or_path: str | os.PathLike | None, device: str | torch.device | None
) -> list[NamedModel]:
    """Loads one or several models.

    Args:
        model: A module, a folder, a Hub id, or a list of these.
        adapter_name_or_path: SiNGER adapter of the only model, which is a folder or Hub id.
        device: Torch device of loaded models; None takes a GPU if there is one.

    Raises:
        ValueError: If there is no model, an adapter is given for several models or for a module, it does not fit, or
            the device is unknown.
        FileNotFoundError: If there is no such model.
    """
    given = list(model) if isinstance(model, list | tuple) else [model]
    if not given:
        raise ValueError("`model` must be at least one model, got none")
    if adapter_name_or_path is not None and len(given) > 1:
        raise ValueError(f"`adapter_name_or_path` goes with one model, got {len(given)} models")
    place = find_device(device)
    paths = [_path_of(item) for item in given]
    modules = [_load(item, adapter_name_or_path, place) for item in given]
    names = [path or type(unwrap_peft(item)).__name__ for path, item in zip(paths, given, strict=True)]
    labels = labels_of([_with_adapter(name, model, names) for name, model in zip(names, modules, strict=True)])
    return [NamedModel(*entry) for entry in zip(labels, paths, modules, strict=True)]


def find_device(device: str | torch.device | None) -> torch.device:
    """Returns the device; None takes a GPU if there is one.

    Raises:
        ValueError: If torch has no such device.
    """
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"`device` must be a device of torch, got {device!r}: {error}") from error


def labels_of(names: Sequence[str]) -> list[str]:
    """Returns different names of models for tables and figures: their last parts, if possible, and no absolute paths.

    Args:
        names: Folders or Hub ids.
    """
    shown = [without_paths(name) for name in names]
    last = [Path(name).name for name in shown]
    labels = last if len(set(last)) == len(last) else shown
    return [
        f"{label} ({labels[:index].count(label) + 1})" if labels.count(label) > 1 else label
        for index, label in enumerate(labels)
    ]


@contextmanager
def on_device(models: Sequence[NamedModel], device: str | torch.device | None) -> Iterator[None]:
    """Context with all models on a device; afterwards each is where it was. None leaves them where they are."""
    before = [next(entry.model.parameters()).device for entry in models]
    try:
        for entry in models if device is not None else ():
            entry.model.to(device)
        yield
    finally:
        for entry, place in zip(models, before, strict=True):
            entry.model.to(place)


def _with_adapter(name: str, model: nn.Module, names: Sequence[str]) -> str:
    """The name of a model; of two models of this name, such as before and after a cleaning, the adapter is told."""
    return f"{name} + adapter" if names.count(name) > 1 and find_singer_layers(model) else name


def _path_of(model: Any) -> str | None:
    if not isinstance(model, nn.Module):
        return os.fspath(model)
    return getattr(getattr(unwrap_peft(model), "config", None), "name_or_path", None) or None


def _load(model: Any, adapter: str | os.PathLike | None, device: torch.device) -> nn.Module:
    """A module as it is; a folder or Hub id with its classification head, if it has one, and its adapter."""
    if isinstance(model, nn.Module):
        if adapter is not None:
            raise ValueError(
                "`adapter_name_or_path` must be left out for a module, which would be changed, got "
                f"{os.fspath(adapter)!r}; load it yourself with `PeftModel.from_pretrained(model, ...)`"
            )
        return model
    name = os.fspath(model)
    module, folder = load_model(name, "model_name_or_path"), find(name, TRAINED)
    if any("ForImageClassification" in kind for kind in AutoConfig.from_pretrained(folder).architectures or ()):
        module = AutoModelForImageClassification.from_pretrained(folder)
    if adapter is not None:
        module = load_adapter(module, adapter)
    return module.to(device).eval()
