"""The recommended objective has no unit of length: a teacher with a longer residual stream gives the same student."""

import copy

import pytest
import torch
from distillers import small_student
from peft import get_peft_model
from torch import nn
from zoo import FAMILIES, images

from singer_hf import SingerConfig, SingerDistiller
from singer_hf.artifacts.attention import attention_parts
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

FACTOR = 7.0
pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def lengthened(model: nn.Module, factor: float = FACTOR) -> nn.Module:
    """A copy whose embeddings and whose additions to the residual stream are ``factor`` times as long.

    The epsilons of its norms follow, so that it computes exactly what the model computes.
    """
    model = copy.deepcopy(model)
    view = view_vit(model)
    blocks = {id(p) for block in view.blocks for p in block.parameters()}
    norms = {name: module for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    kept = {id(p) for norm in norms.values() for p in norm.parameters()}
    for name, parameter in model.named_parameters():
        embedding = id(parameter) not in blocks | kept and ("embed" in name or "token" in name)
        if embedding or "pre_layrnorm" in name:  # CLIP normalises its embeddings
            parameter.data *= factor
    for i in range(view.num_blocks):
        for scale, layer in zip(
            view.layer_scales(i), (_attention_output(view, i), view.mlp_layers(i)[1]), strict=True
        ):
            if scale is not None:
                scale.data *= factor
            else:
                for parameter in layer.parameters():
                    parameter.data *= factor
    for norm in norms.values():
        reads_stream = getattr(norm, "weight", None) is None or norm.weight.numel() == view.hidden_size
        for name in ("eps", "variance_epsilon"):
            if hasattr(norm, name) and reads_stream:  # not those of queries, keys and hidden units
                setattr(norm, name, getattr(norm, name) * factor**2)
    return model


def _attention_output(view: ViTView, index: int) -> nn.Module | None:
    parts = attention_parts(view, index)
    return None if parts is None else parts.output


def student_gradients(teacher: nn.Module, target_norm: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = SingerConfig(r=4, layers_to_transform=[1, 3], init_scale=-1.0, gate="outlier", init_weights="random")
    settings = {"target_norm": target_norm, "outlier_loss": "relative", "info_weight": 100.0}
    distiller = SingerDistiller(small_student(), get_peft_model(teacher, config), **settings).train()
    for layer in distiller.singer_layers.values():
        layer.singer_gate["default"].rule = type(layer.singer_gate["default"].rule)(mad_factor=0.5, mad_floor=0.01)
    output = distiller(images())
    output.loss.backward()
    gradients = {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}
    # The adapter is a map of the stream to itself: its weights have no unit either.
    return {"losses": torch.stack([v.detach() for v in output.values()]), **gradients}


@pytest.mark.parametrize("target_norm", ["token", "channel"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_longer_residual_stream_gives_the_same_student(name, target_norm):
    torch.manual_seed(0)
    teacher = FAMILIES[name].build().eval()
    view = view_vit(teacher)
    for parameter_name, parameter in teacher.named_parameters():
        if "cls_token" in parameter_name:  # timm starts them at lengths of 1e-6, at the end of float32's resolution
            torch.nn.init.normal_(parameter, std=0.5)
    try:
        list(view.input_projections(1))
    except ValueError:
        pytest.skip("not pre-norm: its norms bound the stream")
    if any(_attention_output(view, i) is None for i in range(view.num_blocks)):
        pytest.skip("the output layer of its attention is not found")
    longer = lengthened(teacher)
    expected, actual = (student_gradients(model, target_norm) for model in (teacher, longer))
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()) + 1e-9, msg=key)
