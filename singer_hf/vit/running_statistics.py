"""Statistics of features that are estimated while training and fixed afterwards, equal in all processes."""

import torch
from torch import Tensor

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
