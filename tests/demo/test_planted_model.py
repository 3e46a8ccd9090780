"""High-norm tokens planted into whole models: which weights change, where they appear, how long, along what."""

import re

import pytest
import torch
import zoo
from runs import differing, snapshot
from torch.nn import functional as F

from singer_hf.artifacts.directions import defect_directions
from singer_hf.artifacts.planting import random_direction
from singer_hf.demo.planted_model import (
    PLANTED_DIRECTIONS,
    block_norm_statistics,
    norm_lines,
    plant_in_model,
    reserve_units,
)
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit

# Plain, with another prefix, and with LayerScale.
PLAIN = ("vit", "deit", "dinov2")
IMAGES = zoo.images(batch=32)


def refuse(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def reserved(family="vit"):
    model = zoo.tiny(family)
    reserve_units(model)
    return model


def planted(family="vit", block=1, **settings):
    model = reserved(family)
    plant_in_model(model, IMAGES, block, share=0.1, **settings)
    return model


def mlp_names(model, block):
    """Names of the weight and bias of the MLP's first layer and of the weight of its last one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mlp_in, mlp_out = view_vit(model).mlp_layers(block)
    return [names[id(parameter)] for parameter in (mlp_in.weight, mlp_in.bias, mlp_out.weight)]


def without_last_units(state, model, blocks):
    """A state without the last hidden unit of the MLPs of some blocks."""
    state = dict(state)
    for block in blocks:
        weight, bias, out_weight = mlp_names(model, block)
        state |= {weight: state[weight][:-1], bias: state[bias][:-1], out_weight: state[out_weight][:, :-1]}
    return state


def patches(model, block):
    """Patch tokens (B, N, D) after a block."""
    with torch.no_grad():
        tokens = capture_features(model, IMAGES, [block])[block]
    return tokens[:, view_vit(model).num_prefix_tokens :]


def direction_of(model, block=1):
    """Unit vector that the last hidden unit of a block's MLP adds to the tokens."""
    view = view_vit(model)
    written, scale = view.mlp_layers(block)[1].weight[:, -1].detach(), view.layer_scales(block)[1]
    return F.normalize(written if scale is None else written * scale.detach(), dim=0)


def input_projections(layer):
    """Input projections of a plain ViT's block as one matrix, with the norms' gains and centring."""
    attention = torch.cat([getattr(layer.attention, f"{name}_proj").weight for name in "qkv"])
    matrix = torch.cat(
        [attention * layer.layernorm_before.weight, layer.mlp.fc1.weight * layer.layernorm_after.weight]
    ).detach()
    return matrix - matrix.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("family", PLAIN)
def test_the_last_unit_of_every_mlp_is_reserved_and_nothing_else_is_touched(family):
    model = zoo.tiny(family)
    before = snapshot(model)
    reserve_units(model)
    after = snapshot(model)
    names = [mlp_names(model, block) for block in range(4)]
    assert differing(after, before) == {name for parts in names for name in parts}
    for weight, bias, out_weight in names:
        assert not after[weight][-1].any()
        assert after[bias][-1] == 0
        assert not after[out_weight][:, -1].any()
    assert differing(*(without_last_units(state, model, range(4)) for state in (after, before))) == set()


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("block", [1, -2])
def test_planting_changes_one_unit_of_one_block(family, block):
    model = reserved(family)
    before = snapshot(model)
    plant_in_model(model, IMAGES, block, share=0.1)
    after = snapshot(model)
    assert differing(after, before) == set(mlp_names(model, block % 4))
    assert differing(*(without_last_units(state, model, [block % 4]) for state in (after, before))) == set()


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("block", [0, 2])
def test_outliers_appear_from_the_planted_block_on(family, block):
    before, after = (block_norm_statistics(model, IMAGES) for model in (reserved(family), planted(family, block)))
    assert after[:block] == before[:block]
    for statistics, plain in zip(after[block:], before[block:], strict=True):
        assert plain["max_over_median"] < 3
        assert plain["share"] == 0
        assert 0.03 < statistics["share"] < 0.1
        assert statistics["p99_over_median"] > 8


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("ratio", [8.0, 32.0])
def test_norm_and_number_of_planted_tokens_are_as_requested(family, ratio):
    """The added vectors are GELU outputs along one direction; the median score of the active tokens is 3."""
    before = patches(reserved(family), 1)
    added = (patches(planted(family, ratio=ratio), 1) - before).flatten(0, 1)
    along = added @ random_direction(zoo.HIDDEN, 1.0, torch.Generator().manual_seed(0))
    fires = along > 1e-3
    assert fires.float().mean().item() == pytest.approx(0.1, abs=0.01)
    norms = before.norm(dim=-1).flatten().sort().values
    expected = ratio * norms[len(norms) // 2] * F.gelu(torch.tensor(3.0)) / 3
    assert along[fires].median().item() == pytest.approx(expected.item(), rel=0.1)
    torch.testing.assert_close(added[fires].norm(dim=1), along[fires], rtol=1e-3, atol=1e-3)


def test_random_directions_are_those_of_their_seeds():
    for seed in (0, 5):
        expected = random_direction(zoo.HIDDEN, 1.0, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(direction_of(planted(seed=seed)), expected)


@pytest.mark.parametrize("family", PLAIN)
def test_the_leading_direction_is_the_leading_singular_direction_of_the_mlp(family):
    expected = defect_directions(view_vit(reserved(family)), 1)["mlp"]
    torch.testing.assert_close(direction_of(planted(family, direction="leading")), expected)


@pytest.mark.parametrize(("block", "reader"), [(1, 2), (3, 3)])
def test_the_read_direction_has_the_largest_singular_value_of_the_next_block(block, reader):
    matrix = input_projections(reserved().layers[reader])
    leading = torch.linalg.svd(matrix).Vh[0]
    direction = direction_of(planted(block=block, direction="read"), block)
    assert abs(float(direction @ leading)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("block", [1, 3])
def test_the_unread_direction_has_a_small_response_and_survives_centring(block):
    matrix = input_projections(reserved().layers[min(block + 1, 3)])
    direction = direction_of(planted(block=block, direction="unread"), block)
    assert direction.norm().item() == pytest.approx(1, abs=1e-5)
    assert direction.mean().item() == pytest.approx(0, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    random = torch.stack([random_direction(zoo.HIDDEN, 1.0, generator) for _ in range(200)])
    assert (matrix @ direction).norm() < (random @ matrix.T).norm(dim=1).min()


def test_the_directions_differ():
    directions = [direction_of(planted(direction=name)) for name in PLANTED_DIRECTIONS]
    assert PLANTED_DIRECTIONS == ("random", "leading", "read", "unread")
    similarities = torch.stack(directions) @ torch.stack(directions).T
    assert (similarities - torch.eye(4)).abs().max() < 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": 4}, "`block` must be a block of a model with 4 blocks, got 4"),
        ({"block": -5}, "`block` must be a block of a model with 4 blocks, got -5"),
        ({"ratio": 0}, "`ratio` must be greater than 0, got 0"),
        ({"ratio": float("nan")}, "`ratio` must be greater than 0, got nan"),
        ({"share": 0.5}, "`share` must be between 0 and 0.5 and `gain` above 0, got 0.5 and 3.0"),
        (
            {"direction": "sideways"},
            "`direction` must be one of 'random', 'leading', 'read', 'unread', got 'sideways'",
        ),
    ],
)
def test_settings_out_of_range_are_refused_and_change_nothing(settings, message):
    model = reserved()
    before = snapshot(model)
    with refuse(message):
        plant_in_model(model, IMAGES, **{"block": 1, **settings})
    assert differing(snapshot(model), before) == set()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_unit_in_use_is_not_overwritten():
    with refuse("`unit` must be an unused hidden unit, got 63, which is in use; call reserve_unit() first"):
        plant_in_model(zoo.tiny("vit"), IMAGES, 1)


def test_a_gated_mlp_is_refused():
    for call in (reserve_units, lambda model: plant_in_model(model, IMAGES, 1)):
        with refuse(
            "Dinov2Layer has a gated MLP, in which one hidden unit cannot be planted alone; use a model with an "
            "ungated MLP"
        ):
            call(zoo.tiny("dinov2_giant"))


def test_norm_statistics_are_printed_line_by_line():
    statistics = [
        {"median": 9.4, "p99_over_median": 1.5, "max_over_median": 2.0, "share": 0.0},
        {"median": 12.345, "p99_over_median": 8.1, "max_over_median": 24.75, "share": 0.0213},
    ]
    assert norm_lines(statistics) == [
        "  block 0: median norm   9.40, p99/median   1.50, max/median   2.00, at 8 times the median or more 0.00%",
        "  block 1: median norm  12.35, p99/median   8.10, max/median  24.75, at 8 times the median or more 2.13%",
    ]
