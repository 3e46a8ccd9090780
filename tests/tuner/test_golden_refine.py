"""The released code's initial adapters and refined features, from numbers it produced on a tiny random teacher."""

import json

import pytest
import torch
from distillers import adapter_part
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import ViTModel

from singer_hf import SingerConfig
from singer_hf.tuner.nullspace_sources import linearized_mlp
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden / "tensors.safetensors")


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.fixture
def teacher(golden):
    return ViTModel.from_pretrained(golden / "teacher", add_pooling_layer=False).eval()


@pytest.fixture
def peft_teacher(teacher):
    config = SingerConfig(r=8, layers_to_transform=[3, 5], **adapter_part("reference"))
    return get_peft_model(teacher, config).eval()


@pytest.mark.parametrize("layer", [3, 5])
def test_block_outputs_are_the_released_codes(teacher, tensors, layer):
    with torch.no_grad():
        tokens = capture_features(teacher, tensors["pixel_values"][0], [layer])[layer]
    torch.testing.assert_close(tokens, tensors[f"feature.teacher.{layer}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [3, 5])
def test_singular_values_of_the_mlp_product_are_the_released_codes(teacher, expected, layer):
    view = view_vit(teacher)
    values = torch.linalg.svdvals(linearized_mlp(view, view.next_block(layer)))
    torch.testing.assert_close(values, torch.tensor(expected["singular_values"][str(layer)]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [3, 5])
def test_reference_start_spans_the_released_codes_directions(peft_teacher, tensors, expected, layer):
    """Singular vectors are defined up to sign (and to a rotation where values repeat): Φ_down Φ_up is compared."""
    singer = peft_teacher.base_model.singer_layers[layer]
    down, up = singer.singer_down["default"].weight.T, singer.singer_up["default"].weight.T
    assert down.shape == tensors[f"init.{layer}.down"].shape == (64, expected["rank"])
    assert up.shape == tensors[f"init.{layer}.up"].shape
    theirs = tensors[f"init.{layer}.down"] @ tensors[f"init.{layer}.up"]
    torch.testing.assert_close(down.detach() @ up.detach(), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [3, 5])
def test_reference_start_takes_the_same_vectors_in_the_same_order_up_to_sign(peft_teacher, tensors, layer):
    down = peft_teacher.base_model.singer_layers[layer].singer_down["default"].weight.detach()
    overlap = (down @ tensors[f"init.{layer}.down"]).abs()
    torch.testing.assert_close(overlap, torch.eye(8), atol=2e-3, rtol=0)


@pytest.mark.parametrize("layer", [3, 5])
def test_refine_from_the_own_start_differs_by_the_released_codes_rounding_only(peft_teacher, tensors, layer):
    """The recorded start is a float32 SVD, 5e-6 off the exact projector, and applied to tokens of norm up to 70."""
    raw = tensors[f"feature.teacher.{layer}"]
    with torch.no_grad():
        refined = peft_teacher.base_model.singer_layers[layer].refine(raw)
    prefix, patches = split_tokens(refined, 1)
    assert torch.equal(prefix, raw[:, :1])
    error = (patches - tensors[f"refined_patches.teacher.{layer}"]).norm(dim=-1) / raw[:, 1:].norm(dim=-1)
    assert error.max() < 5e-5


@pytest.mark.parametrize("layer", [3, 5])
def test_refine_with_the_released_codes_weights_gives_its_refined_patches(peft_teacher, tensors, layer):
    singer = peft_teacher.base_model.singer_layers[layer]
    with torch.no_grad():
        singer.singer_down["default"].weight.copy_(tensors[f"init.{layer}.down"].T)
        singer.singer_up["default"].weight.copy_(tensors[f"init.{layer}.up"].T)
        refined = singer.refine(tensors[f"feature.teacher.{layer}"])
    torch.testing.assert_close(refined[:, 1:], tensors[f"refined_patches.teacher.{layer}"], atol=1e-5, rtol=1e-5)
