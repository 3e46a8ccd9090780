"""The state file of a fit: tensors and plain values only, so that loading it can run no code."""

import os
import uuid
from pathlib import Path
from typing import Protocol

import torch
from torch import nn


class FitState(Protocol):
    """What a fit keeps between epochs."""

    heads: nn.ModuleList
    optimizer: torch.optim.Optimizer
    epoch: int
    scores: dict[str, float]
    best: dict[str, object]


def save_state(path: Path, key: str, fit: FitState) -> None:
    """Writes the state of ``fit`` to ``path``, atomically.

    Args:
        path: State file.
        key: What the fit is; :func:`load_state` asks for the same.
        fit: The fit.
    """
    state = {
        "key": key,
        "heads": fit.heads.state_dict(),
        "optimizer": fit.optimizer.state_dict(),
        "epoch": fit.epoch,
        "scores": fit.scores,
        "best": fit.best,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path, key: str, fit: FitState) -> None:
    """Takes up ``fit`` where the state file left it; does nothing if there is no such file.

    Raises:
        ValueError: If the file belongs to another fit.
    """
    if not path.exists():
        return
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["key"] != key:
        raise ValueError(
            f"`state_path` must belong to the same settings, candidates and data, got {str(path)!r} of another fit; "
            "delete it or use another file"
        )
    fit.heads.load_state_dict(state["heads"])
    fit.optimizer.load_state_dict(state["optimizer"])
    fit.epoch, fit.scores, fit.best = state["epoch"], state["scores"], state["best"]
