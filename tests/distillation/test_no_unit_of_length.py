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
from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.tuner import gate as gate_module
from singer_hf.tuner.gate import OutlierGate
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

FACTOR = 7.0
SETTINGS = (
    {"target_norm": "token", "outlier_loss": "relative", "detach_refined": False},
    {"target_norm": "channel", "outlier_loss": "neighbors"},
    {},  # the defaults
)
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


@pytest.fixture(autouse=True)
def open_gates(monkeypatch):
    """Random teachers have no artifacts: gates open for the longer tokens, and for those of a high score."""
    monkeypatch.setattr(OutlierGate, "is_open", torch.tensor(True))
    monkeypatch.setattr(gate_module, "_NORMS", (0.5, 1.5))
    monkeypatch.setattr(gate_module, "_SCORES", (1.5, 3.0))


def student_gradients(teacher: nn.Module, settings: dict[str, object]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = SingerConfig(r=4, layers_to_transform=[1, 3])
    distiller = SingerDistiller(small_student(), get_peft_model(teacher, config), **settings).train()
    for layer in distiller.singer_layers.values():
        layer.singer_gate["default"].rule = OutlierRule(mad_factor=0.5, mad_floor=0.01)
        for up in layer.singer_up.values():  # the identity would refine nothing
            up.weight.data += 0.1 * torch.randn(up.weight.shape)
    output = distiller(images())
    output.loss.backward()
    check_gates(distiller)
    gradients = {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}
    # The adapter is a map of the stream to itself: its weights have no unit either.
    return {"losses": torch.stack([v.detach() for v in output.values()]), **gradients}


def check_gates(distiller: SingerDistiller) -> None:
    """Every gate refines some patches, some of them for their score alone, and leaves others as they are."""
    raw = distiller.teacher_features(images()).outputs
    for block, refined in distiller.refine(raw).items():
        gate, prefix = distiller.singer_layers[block].singer_gate["default"], distiller.teacher_view.num_prefix_tokens
        patches = raw[block][:, prefix:]
        changed = (refined[:, prefix:] != patches).any(dim=-1)
        long = patches.norm(dim=-1) > gate.location + 0.5 * gate.deviation
        assert changed.any()
        assert not changed.all()
        assert (changed & ~long).any()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.get("outlier_loss", "defaults"))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_longer_residual_stream_gives_the_same_student(name, settings):
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
    expected, actual = (student_gradients(model, settings) for model in (teacher, longer))
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()) + 1e-9, msg=key)
