"""Models for the tests of the export: short ones, CNNs, and adapters whose gate is open or closed."""

import numpy as np
import torch
import transformers as hf
from adapters import attach
from peft import PeftModel
from torch import nn
from zoo import fill, images, tiny

from singer_hf.vit.structure import view_vit

BATCH_SIZES = (1, 2, 5)
GATE_OPENS = 0.5  # so far above its location: 10 deviations

RESNET = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
CONVNEXT = hf.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2, image_size=32)
SWIN = hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=32, patch_size=4, window_size=4)

OTHER_STUDENTS = {
    "resnet": lambda: hf.ResNetModel(RESNET),
    "resnet_classifier": lambda: hf.ResNetForImageClassification(RESNET),
    "convnext": lambda: hf.ConvNextModel(CONVNEXT),
    "swin": lambda: hf.SwinModel(SWIN, add_pooling_layer=False),
}


def other_student(name: str) -> nn.Module:
    """A CNN or Swin in eval mode with random weights and random statistics."""
    torch.manual_seed(0)
    return fill(OTHER_STUDENTS[name]())


def shortened(family: str, num_blocks: int = 2) -> nn.Module:
    """The tiny model of a family with its first blocks only, which is traced faster."""
    model = tiny(family)
    del model.get_submodule(view_vit(model).blocks_path)[num_blocks:]
    return model


def with_gate(model: nn.Module, is_open: bool = True) -> PeftModel:
    """The model with adapters after all blocks; an open gate lets them refine the longer half of the patches."""
    adapted = attach(model, gate="outlier", layers_to_transform=list(range(view_vit(model).num_blocks)))
    for index, layer in adapted.base_model.singer_layers.items():
        norms = raw_norms(adapted, index)
        gate = layer.singer_gate["default"]
        gate.deviation.fill_(0.05), gate.location.fill_(norms.quantile(0.5) - GATE_OPENS)
        gate.share.fill_(0.1 if is_open else 0.0), gate.excess.fill_(1)
    return adapted


def raw_norms(adapted: PeftModel, index: int) -> torch.Tensor:
    """Norms of the patches (B, N) that the adapter after a block gets."""
    kept, view = [], view_vit(adapted)
    handle = view.blocks[index].register_forward_hook(lambda *call: kept.append(call[-1]))
    with torch.no_grad():
        adapted.get_base_model()(images(batch=5), **view.forward_kwargs(images(batch=5)))
    handle.remove()
    tokens = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return tokens[:, view.num_prefix_tokens :].norm(dim=-1)


def assert_close(found: dict, expected: dict) -> None:
    """Equal names in equal order and values that differ by at most 1e-4."""
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(np.asarray(found[name]), values.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
