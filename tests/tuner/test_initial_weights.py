"""How the adapter starts, against oracles written out here."""

import copy
import warnings

import pytest
import torch
import zoo
from adapters import attach, last_hidden_state, weights
from torch import nn
from zoo import images, tiny_vit

D = zoo.HIDDEN
pytestmark = pytest.mark.filterwarnings("ignore:.*exceeds the effective null dimension")


def _oracle_directions(model: nn.Module, next_block: int, r: int) -> torch.Tensor:
    mlp = model.layers[next_block].mlp
    _, _, directions = torch.linalg.svd(mlp.fc2.weight.double() @ mlp.fc1.weight.double())
    return directions[-r:].T.float().detach()


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.25])
@pytest.mark.parametrize(("layer", "next_block"), [(1, 2), (3, 3)])
def test_nullspace_start_adds_a_multiple_of_the_component_in_the_null_space(scale, layer, next_block):
    model = tiny_vit()
    oracle = _oracle_directions(model, next_block, 4)
    down, up = weights(attach(model, layers_to_transform=[layer], init_weights="nullspace", init_scale=scale), layer)
    torch.testing.assert_close(up, scale * down.T)
    torch.testing.assert_close(down.T @ down, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(down @ up, scale * oracle @ oracle.T, atol=1e-4, rtol=0)


def test_identity_start_changes_nothing_and_can_learn():
    model = tiny_vit()
    expected, oracle = last_hidden_state(model), _oracle_directions(model, 2, 4)
    peft_model = attach(model, init_weights="identity", layers_to_transform=[1])
    down, up = weights(peft_model, 1)
    torch.testing.assert_close(down @ down.T, oracle @ oracle.T, atol=1e-4, rtol=0)
    assert not up.any()
    assert torch.equal(last_hidden_state(peft_model), expected)
    peft_model(images())[0].square().sum().backward()
    assert peft_model.base_model.singer_layers[1].singer_up["default"].weight.grad.any()


def test_random_start_is_orthonormal_seeded_and_differs_between_blocks():
    first, again, other = (attach(tiny_vit(), layers_to_transform=[1, 2], init_seed=seed) for seed in (0, 0, 1))
    down, up = weights(first, 1)
    torch.testing.assert_close(down.T @ down, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(up, down.T)
    assert torch.equal(down, weights(again, 1)[0])
    assert not torch.allclose(down, weights(other, 1)[0], atol=0.05)
    assert not torch.allclose(down, weights(first, 2)[0], atol=0.05)


def test_minus_one_removes_the_component():
    peft_model = attach(tiny_vit(), layers_to_transform=[1], init_scale=-1.0)
    down, _ = weights(peft_model, 1)
    with torch.no_grad():
        refined = peft_model.base_model.singer_layers[1].refine(torch.randn(2, 17, D))
    assert (refined[:, 1:] @ down).abs().max() < 1e-5


@pytest.mark.parametrize("source", ["block", "jacobian"])
def test_other_sources_reach_the_adapter(source):
    model = tiny_vit()
    with torch.no_grad():  # block 2 does not depend on the difference of channels 0 and 1
        unused = torch.zeros(D)
        unused[0], unused[1] = 0.5**0.5, -(0.5**0.5)
        block = model.layers[2]
        for norm in (block.layernorm_before, block.layernorm_after):
            norm.weight.fill_(1.0)
        for linear in (block.attention.q_proj, block.attention.k_proj, block.attention.v_proj, block.mlp.fc1):
            linear.weight -= torch.outer(linear.weight @ unused, unused)
    config = {"calibration_images": [images(seed=seed) for seed in range(4)]} if source == "jacobian" else {}
    peft_model = attach(
        model, r=4, layers_to_transform=[1], init_weights="nullspace", nullspace_source=source, **config
    )
    down, _ = weights(peft_model, 1)
    assert (down.T @ unused).square().sum() > 0.95


def test_calibration_sees_the_raw_teacher_after_another_adapter_too():
    config = {"init_weights": "nullspace", "nullspace_source": "jacobian", "calibration_images": images()}
    alone = attach(tiny_vit(), layers_to_transform=[2], **config)
    both = attach(tiny_vit(), layers_to_transform=[0, 2], init_scale=5.0, **config)
    down, again = weights(alone, 2)[0], weights(both, 2)[0]
    torch.testing.assert_close(down @ down.T, again @ again.T, atol=1e-4, rtol=0)


def test_a_rank_above_the_effective_null_dimension_is_warned_of_with_both_figures():
    model = tiny_vit()
    with torch.no_grad():
        for index in (2, 3):
            model.layers[index].mlp.fc1.weight.copy_(torch.eye(64, D))
            model.layers[index].mlp.fc2.weight.copy_(torch.eye(D, 64))
            model.layers[index].mlp.fc2.weight[:3, :3] = 0.01 * torch.eye(3)
    with pytest.warns(UserWarning, match="effective null dimension") as caught:
        attach(copy.deepcopy(model), r=4, layers_to_transform=[1], init_weights="nullspace", init_scale=1.0)
    assert str(caught[0].message) == (
        'block 1: `r` = 4 exceeds the effective null dimension 3 (singular values of `nullspace_source="mlp"` '
        "below 0.05 times the largest singular value), so the initial adapter also changes what the next block "
        "computes; lower `r`"
    )
    settings = {"init_weights": "nullspace", "init_scale": -1.0, "null_threshold": 0.005}
    with pytest.warns(UserWarning, match="effective null dimension 0 .* below the `null_threshold` 0.005"):
        attach(copy.deepcopy(model), r=4, layers_to_transform=[1], **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attach(copy.deepcopy(model), r=3, layers_to_transform=[1], init_weights="nullspace", init_scale=1.0)
        # An adapter that starts as the identity changes nothing, whatever its rank.
        attach(model, r=4, layers_to_transform=[1], init_weights="nullspace", init_scale=0.0)
