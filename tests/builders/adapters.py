"""Adapters on tiny models, for the tests of the tuner."""

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from zoo import images

from singer_hf import SingerConfig
from singer_hf.vit.structure import view_vit


def attach(model: nn.Module, **config: object) -> PeftModel:
    """A PeftModel in eval mode with random adapter directions, so that refinement changes later blocks."""
    config = {"r": 4, "init_weights": "random", "init_scale": 1.0, "gate": "none", **config}
    return get_peft_model(model, SingerConfig(**config)).eval()


def last_hidden_state(model: nn.Module, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
    pixel_values = images() if pixel_values is None else pixel_values
    with torch.no_grad():
        return model(pixel_values, **view_vit(model).forward_kwargs(pixel_values))[0]


def weights(peft_model: PeftModel, index: int, name: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
    """(Φ_down (D, r), Φ_up (r, D))."""
    layer = peft_model.base_model.singer_layers[index]
    return layer.singer_down[name].weight.detach().T, layer.singer_up[name].weight.detach().T
