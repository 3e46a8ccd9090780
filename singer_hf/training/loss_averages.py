"""Running means of the loss components on the device."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from singer_hf.data.image_processors import image_spec
from singer_hf.data.pixels import PixelNormalization
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


class LossMixin:
    """Overrides of `transformers.Trainer` that compute the loss of a batch of images and average its components."""

    @cached_property
    def _normalization(self) -> PixelNormalization:
        spec = image_spec(self.processing_class)
        return PixelNormalization(spec.mean, spec.std)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if "pixels" in inputs:  # 8-bit ones from the loader's workers; the device normalises them
            inputs["pixel_values"] = self._prepare_input(self._normalization(inputs.pop("pixels")))
        return inputs

    def _set_losses(self) -> None:
        self.loss_averages = LossAverages()
        self.last_pixel_values: Tensor | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Computes the distillation loss of a batch; labels are not used.

        Args:
            model: The distiller, possibly wrapped.
            inputs: The batch with ``pixel_values`` (B, 3, H, W).
            return_outputs: Whether to return the outputs too.
            num_items_in_batch: Not used.
        """
        outputs = model(inputs["pixel_values"])
        if model.training:
            self.last_pixel_values = inputs["pixel_values"]
            self.finite.add(outputs, self.state.global_step + 1, self.state.epoch)
            self.loss_averages.add(outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss
