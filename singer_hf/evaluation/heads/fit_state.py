"""State file of a fit. It holds tensors and plain values only, so that loading it cannot run code."""

import os
import uuid
from pathlib import Path
from typing import Protocol

import torch
from torch import nn


class FitState(Protocol):
    """State of a fit between epochs."""

    heads: nn.ModuleList
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    epoch: int
    scores: dict[str, float]
    best: dict[str, object]


def save_state(path: Path, key: str, fit: FitState) -> None:
    """Writes the state of ``fit`` to ``path``, atomically.

    Args:
        path: State file.
        key: Text that identifies the fit; :func:`load_state` requires the same.
        fit: The fit.
    """
    state = {
        "key": key,
        "heads": fit.heads.state_dict(),
        "optimizer": fit.optimizer.state_dict(),
        "scheduler": fit.scheduler.state_dict(),
        "epoch": fit.epoch,
        "scores": fit.scores,
        "best": fit.best,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path, key: str, fit: FitState) -> None:
    """Restores ``fit`` from the state file, if there is one.

    Args:
        path: State file.
        key: Text that identifies the fit.
        fit: The fit to restore.

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
    fit.scheduler.load_state_dict(state["scheduler"])
    fit.epoch, fit.scores, fit.best = state["epoch"], state["scores"], state["best"]
