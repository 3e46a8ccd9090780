"""Statistics of features that are estimated while training and fixed afterwards, equal in all processes."""

from typing import Any

import torch
from torch import Tensor, nn

# Batches after which a statistic is fixed, so that targets and gates do not depend on the batch any more.
NUM_SETTLING_BATCHES = 100


def settling_weight(num_batches: Tensor) -> Tensor:
    """Weight of the next batch in a running mean over the first ``NUM_SETTLING_BATCHES`` batches, 0 after them.

    Args:
        num_batches: Batches seen so far, a scalar tensor of integers.

    Returns:
        A scalar tensor in [0, 1], float32, without synchronising the device.
    """
    weight = 1 / (num_batches.float() + 1)
    return weight * (num_batches < NUM_SETTLING_BATCHES)


class SettlingStatistics(nn.Module):
    """Statistics that are estimated over the first batches of a training and fixed afterwards.

    Subclasses have ``num_batches``, and their ``observe`` returns at once while ``is_settled``: later batches change
    nothing, and need be neither measured nor exchanged between the processes.

    Attributes:
        num_batches: Batches that the statistics were estimated from, scalar buffer.
        is_settled: Whether the statistics are known to be fixed; False after they were loaded.
    """

    num_batches: Tensor
    is_settled = False

    def settle(self) -> None:
        """Looks whether the statistics are fixed, which synchronises the device; call it in all processes alike."""
        self.is_settled = bool(self.num_batches >= NUM_SETTLING_BATCHES)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.is_settled = False


def settle_statistics(module: nn.Module) -> None:
    """Lets all statistics in a module rest that are fixed, see :meth:`SettlingStatistics.settle`.

    Args:
        module: Any module.
    """
    for part in module.modules():
        if isinstance(part, SettlingStatistics):
            part.settle()


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of a tensor (...) over all processes; the tensor itself in a single one."""
    if not _has_processes():
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()


def process_place() -> tuple[int, int]:
    """(rank, number) of the processes of the run; (0, 1) in a single one."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _has_processes() else (0, 1)


def _has_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
