"""Running means of the loss components, kept on the device between two logs."""

from typing import Any

import torch
from torch import Tensor

COMPONENTS = ("kd_loss", "outlier_loss", "info_loss")
# Components that only some methods have.
EXTRA_COMPONENTS = ("generation_loss",)


def component_names(outputs: Any) -> tuple[str, ...]:
    """``COMPONENTS`` and those of ``EXTRA_COMPONENTS`` that the outputs have."""
    return (*COMPONENTS, *(name for name in EXTRA_COMPONENTS if hasattr(outputs, name)))


class ComponentLog:
    """Sums the unweighted components of many batches without synchronising the device.

    Attributes:
        num_batches: Batches seen since it was made.
    """

    def __init__(self) -> None:
        self.num_batches = 0
        self._names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, outputs: Any) -> None:
        """Adds one batch: anything with the attributes in ``COMPONENTS``, scalars."""
        self._names = component_names(outputs)
        values = torch.stack([getattr(outputs, name).detach().float() for name in self._names])
        self._sum = values if self._sum is None else self._sum + values
        self._count += 1
        self.num_batches += 1

    def pop_means(self, accelerator: Any) -> dict[str, float]:
        """Means over the batches since the last call and over all processes; empty without any batch."""
        if self._sum is None:
            return {}
        means = accelerator.reduce(self._sum / self._count, reduction="mean").tolist()
        self._sum, self._count = None, 0
        return dict(zip(self._names, means, strict=True))


def non_finite_component(outputs: Any) -> str | None:
    """Name of the first component (or the sum) that is NaN or infinite; None if all are finite."""
    names = (*component_names(outputs), "loss")
    finite = torch.stack([getattr(outputs, name).detach().float() for name in names]).isfinite().tolist()
    return next((name for name, is_finite in zip(names, finite, strict=True) if not is_finite), None)
