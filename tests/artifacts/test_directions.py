import pytest
import torch
from zoo import tiny

from singer_hf.artifacts.directions import accumulated_direction, defect_directions, leading_left_direction
from singer_hf.vit.structure import view_vit


def test_the_leading_direction_is_the_first_left_singular_vector():
    matrix = torch.randn(32, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(2.0 ** -torch.arange(12))
    expected = torch.linalg.svd(matrix).U[:, 0]
    assert abs(float(leading_left_direction(matrix) @ expected)) == pytest.approx(1.0, abs=1e-5)


@torch.no_grad()
def test_defect_directions_use_gains_centring_and_layer_scale():
    view = view_vit(tiny("dinov2"))
    block = dict(view.blocks[1].named_parameters())
    centre = torch.eye(32) - 1 / 32
    mlp = block["layer_scale2.lambda1"].diag() @ block["mlp.fc2.weight"] @ block["mlp.fc1.weight"]
    expected = torch.linalg.svd(mlp @ block["norm2.weight"].diag() @ centre).U[:, 0]
    assert abs(float(defect_directions(view, 1)["mlp"] @ expected)) == pytest.approx(1.0, abs=1e-3)
    value, output = (block[f"attention.{name}.weight"] for name in ("v_proj", "o_proj"))
    attention = block["layer_scale1.lambda1"].diag() @ output @ value @ block["norm1.weight"].diag() @ centre
    expected = torch.linalg.svd(attention).U[:, 0]
    assert abs(float(defect_directions(view, 1)["attention"] @ expected)) == pytest.approx(1.0, abs=1e-3)


@torch.no_grad()
def test_the_accumulated_direction_is_that_of_all_blocks_multiplied():
    view = view_vit(tiny("dinov2"))
    centre, product = torch.eye(32) - 1 / 32, torch.eye(32)
    for index in range(3):
        block = dict(view.blocks[index].named_parameters())
        value, output = (block[f"attention.{name}.weight"] for name in ("v_proj", "o_proj"))
        attention = block["layer_scale1.lambda1"].diag() @ output @ value @ block["norm1.weight"].diag() @ centre
        mlp = block["layer_scale2.lambda1"].diag() @ block["mlp.fc2.weight"] @ block["mlp.fc1.weight"]
        product = (torch.eye(32) + mlp @ block["norm2.weight"].diag() @ centre) @ (torch.eye(32) + attention) @ product
        expected = torch.linalg.svd(product).U[:, 0]
        direction = accumulated_direction(view, index)
        assert abs(float(direction @ expected)) == pytest.approx(1.0, abs=1e-3)
        assert float(direction.norm()) == pytest.approx(1.0)


def test_the_accumulated_direction_of_a_deep_product_is_finite():
    view = view_vit(tiny("vit"))
    for block in view.blocks:
        for parameter in block.parameters():
            parameter.data *= 1e3
    assert accumulated_direction(view, 3).isfinite().all()
