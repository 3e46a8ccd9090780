"""Running means of the loss components on the device."""

from typing import Any

import torch
from torch import Tensor

from singer_hf.distillation.feature_distiller import DistillerOutput


class LossAverages:
    """Sums the unweighted loss components of many batches without synchronising the device."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, outputs: DistillerOutput) -> None:
        """Adds the components of one batch."""
        components = outputs.components
        self._names = tuple(components)
        values = torch.stack([value.detach().float() for value in components.values()])
        self._sum = values if self._sum is None else self._sum + values
        self._count += 1

    def pop_means(self, accelerator: Any) -> dict[str, float]:
        """Returns the means over the batches since the last call and over all processes; empty without any batch."""
        if self._sum is None:
            return {}
        means = accelerator.reduce(self._sum / self._count, reduction="mean").tolist()
        self._sum, self._count = None, 0
        return dict(zip(self._names, means, strict=True))
