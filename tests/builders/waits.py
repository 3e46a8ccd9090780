"""Counts the operations for which the host waits for its device."""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result, or its size, is read by the host.
_READS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount")


class Waits(TorchDispatchMode):
    """A context that notes every operation that waits: reads of values, and tensors that change their device.

    Attributes:
        found: A line for each of them, with the code that called it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _READS or _picks_by_mask(name, args) or _moves(args, kwargs, output):
            self.found.append(f"{name} at {_caller()}")
        return output


def _picks_by_mask(name: str, args: tuple) -> bool:
    """Whether an index is a mask, whose number of hits the host needs."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _moves(args: tuple, kwargs: dict | None, output: Any) -> bool:
    """Whether tensors of several devices take part; a Python number in arithmetic is no tensor here."""
    return len({leaf.device for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)}) > 1


def _caller() -> str:
    """The last line of the package or of transformers on the stack."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    frames = [frame for frame in frames if frame.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}"
