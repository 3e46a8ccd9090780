"""Clipped norms, neighbours' means and test-time registers, on tokens whose right answer is written out."""

import copy
import pickle

import planted
import pytest
import torch
import zoo
from torch import Tensor, nn

from singer_hf.features import FeatureCapture, capture_features
from singer_hf.inspection.statistics import OutlierRule
from singer_hf.reads import block_calls
from singer_hf.refiners import (
    REFINERS,
    ClipNorm,
    NeighborMean,
    TestTimeRegisters,
    find_register_neurons,
    install_test_time_registers,
    make_refiner,
)
from singer_hf.vit_view import view_vit

# Their blocks tie a position bias or rotary embeddings to P+N tokens.
FIXED_TOKENS = ("beit", "data2vec", "timm_eva_packed", "timm_eva_separate")
FREE_TOKENS = sorted(set(zoo.FAMILIES) - set(FIXED_TOKENS))
BOTH_UNITS = {1: torch.tensor([0]), 2: torch.tensor([0])}


def line(*lengths: float, prefix: int = 1) -> Tensor:
    """Tokens (1, prefix + N, 2): prefix tokens (9, 9), then patches along (3, 4) / 5 of the given lengths."""
    patches = torch.tensor(lengths)[:, None] * torch.tensor([0.6, 0.8])
    return torch.cat([torch.full((prefix, 2), 9.0), patches])[None]


def square(*rows: tuple[float, ...]) -> Tensor:
    """Patches of one channel on a grid, (1, N, 1); no prefix."""
    return torch.tensor(rows, dtype=torch.float32).reshape(1, -1, 1)


def run(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """What the model itself makes of images, by its own forward pass: logits, or tokens behind its last norm."""
    with torch.no_grad():
        output = model(pixel_values, **view_vit(model).forward_kwargs(pixel_values))
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def patches_behind_every_block(model: nn.Module) -> Tensor:
    """(block, patch, channel) of the planted model; its tokens are the same for every image."""
    with torch.no_grad():
        features = capture_features(model, planted.planted_images(batch=2), range(planted.BLOCKS))
    return torch.stack([tokens[1, 1:] for tokens in features.values()]).double()


def test_clip_norm_at_the_rule_keeps_the_direction():
    # Norms 1, 1, 1, 1, 10: median 1, MAD 0, threshold 1 + 10 * max(0, 0.1 * 1) = 2.
    refined = ClipNorm(1).refine(line(1, 1, 1, 1, 10))
    torch.testing.assert_close(refined, line(1, 1, 1, 1, 2))


def test_clip_norm_at_a_rule_of_ones_own():
    # Norms 1, 2, 3, 4, 20: median 3, deviations 2, 1, 0, 1, 17, MAD 1, threshold 3 + 4 * 1 = 7.
    refined = ClipNorm(1, rule=OutlierRule(mad_factor=4.0)).refine(line(1, 2, 3, 4, 20))
    torch.testing.assert_close(refined, line(1, 2, 3, 4, 7))


def test_clip_norm_at_the_quantile_of_the_image():
    # Norms 1, 1, 1, 1, 10 have their 0.9 quantile at rank 0.9 * 4 = 3.6: 1 + 0.6 * (10 - 1) = 6.4.
    refined = ClipNorm(1, quantile=0.9).refine(line(1, 1, 1, 1, 10))
    torch.testing.assert_close(refined, line(1, 1, 1, 1, 6.4))


def test_the_rule_holds_where_the_quantile_is_an_outlier_itself():
    tokens = line(1, 1, 1, 10, 10)
    assert torch.equal(ClipNorm(1, quantile=0.75).refine(tokens), tokens)  # the quantile is 10
    torch.testing.assert_close(ClipNorm(1).refine(tokens), line(1, 1, 1, 2, 2))


@pytest.mark.parametrize("name", REFINERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_prefix_tokens_and_inliers_are_bit_for_bit_those_that_came_in(name, dtype):
    tokens = torch.rand(2, 5 + 24, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    tokens[:, 0] = 1000.0
    tokens[0, 5 + 3] *= 100.0
    refiner = ClipNorm(5) if name == "clip_norm" else NeighborMean(5, (4, 6))
    before = tokens.clone()
    refined = refiner.refine(tokens)
    assert refined.dtype == dtype
    assert refined.shape == tokens.shape
    assert torch.equal(tokens, before)
    assert (refined != tokens).any(-1).nonzero().tolist() == [[0, 5 + 3]]


@pytest.mark.parametrize("refiner", [ClipNorm(1), ClipNorm(1, quantile=0.9), NeighborMean(1, (1, 5))])
def test_images_of_a_batch_do_not_see_each_other(refiner):
    short, long = line(1, 1, 1, 1, 10), line(50, 70, 60, 500, 40)
    refined = refiner.refine(torch.cat([short, long]))
    assert torch.equal(refined, torch.cat([refiner.refine(short), refiner.refine(long)]))


@pytest.mark.parametrize("refiner", [ClipNorm(1), ClipNorm(1, quantile=0.9), NeighborMean(1, (1, 5))])
def test_images_without_outliers_come_back_as_they_are(refiner):
    for tokens in (line(3, 3, 3, 3, 3), torch.zeros(1, 6, 2)):
        assert torch.equal(refiner.refine(tokens), tokens)


def test_neighbor_mean_in_the_middle_takes_all_eight():
    tokens = square((1, 2, 3), (4, 90, 5), (6, 7, 8))  # 36 / 8
    assert NeighborMean(0, (3, 3)).refine(tokens).flatten().tolist() == [1, 2, 3, 4, 4.5, 5, 6, 7, 8]


def test_neighbor_mean_in_a_corner_takes_the_three_there_are():
    tokens = square((1, 2, 3), (4, 5, 6), (7, 8, 90))  # (5 + 6 + 8) / 3
    torch.testing.assert_close(NeighborMean(0, (3, 3)).refine(tokens)[0, 8], torch.tensor([19 / 3]))


def test_neighbor_mean_leaves_other_outliers_out():
    tokens = square((1, 2, 3), (4, 90, 99), (6, 7, 8))
    refined = NeighborMean(0, (3, 3)).refine(tokens).flatten().tolist()
    assert refined[4] == pytest.approx((1 + 2 + 3 + 4 + 6 + 7 + 8) / 7)
    assert refined[5] == pytest.approx((2 + 3 + 7 + 8) / 4)


def test_neighbor_mean_inside_a_cluster_takes_the_nearest_ring_with_inliers():
    # A cluster of 3 x 3 in the top left corner: the corner itself has outliers for neighbours and for their
    # neighbours on the near sides; the nearest inliers lie 3 away, the middle's lie 2 away.
    rows = [
        [1.0, 2, 3, 4, 5, 6],
        [6.0, 5, 4, 3, 2, 1],
        [1.0, 1, 1, 2, 2, 2],
        [3.0, 4, 5, 6, 1, 2],
        [2.0, 2, 2, 2, 2, 2],
    ]
    for row in rows[:3]:
        row[:3] = [80.0, 90.0, 99.0]
    refined = NeighborMean(0, (5, 6)).refine(square(*rows)).reshape(5, 6)
    assert refined[0, 0] == pytest.approx((4 + 3 + 2 + 3 + 4 + 5 + 6) / 7)  # row 3 and column 3 up to each other
    assert refined[1, 1] == pytest.approx((4 + 3 + 2 + 3 + 4 + 5 + 6) / 7)
    assert refined[2, 2] == pytest.approx((3 + 2 + 6 + 5 + 4) / 5)
    assert refined[0, 2] == pytest.approx((4 + 3) / 2)


def test_neighbor_mean_by_a_quantile():
    refined = NeighborMean(1, (1, 5), quantile=0.9).refine(line(1, 1, 1, 3, 10))
    torch.testing.assert_close(refined, line(1, 1, 1, 3, 3))


def test_neighbor_mean_keeps_float32_under_autocast():
    tokens = torch.rand(1, 9, 4, generator=torch.Generator().manual_seed(0))
    tokens[0, 4] *= 100
    expected = NeighborMean(0, (3, 3)).refine(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(NeighborMean(0, (3, 3)).refine(tokens), expected)


def test_neighbor_mean_needs_the_grid_of_the_tokens():
    with pytest.raises(ValueError, match="do not fill") as error:
        NeighborMean(1, (3, 3)).refine(torch.zeros(1, 9, 2))
    assert str(error.value) == (
        "8 patch tokens do not fill a grid of 3 x 3; give the `grid` of the images that are refined"
    )


def test_one_threshold_at_most_is_given_and_in_range():
    with pytest.raises(ValueError, match="both") as error:
        ClipNorm(1, quantile=0.9, rule=OutlierRule())
    assert str(error.value) == (
        "`quantile` and `rule` must not both be given, got 0.9 and OutlierRule(mad_factor=10.0, mad_floor=0.1, "
        "absolute=None); drop one"
    )
    for quantile in (0, 1, -0.5, 97):
        with pytest.raises(ValueError, match="must lie in") as error:
            NeighborMean(1, (2, 2), quantile=quantile)
        assert str(error.value) == (
            f"`quantile` must lie in (0, 1), got {quantile!r}; `rule` needs no share of outliers"
        )


def test_make_refiner_reads_prefix_and_grid_off_the_view():
    view = view_vit(zoo.tiny("dinov2_registers"))
    assert make_refiner("clip_norm", view, (32, 48)) == ClipNorm(5)
    assert make_refiner("clip_norm", view, (32, 48), quantile=0.9) == ClipNorm(5, quantile=0.9)
    assert make_refiner("neighbor", view, (32, 48)) == NeighborMean(5, (4, 6))
    made = make_refiner("neighbor", view, (32, 32), mad_factor=5.0)
    assert made == NeighborMean(5, (4, 4), rule=OutlierRule(mad_factor=5.0))


def test_make_refiner_refuses_what_it_does_not_know():
    view = view_vit(zoo.tiny("vit"))
    with pytest.raises(ValueError, match="must be one of") as error:
        make_refiner("median", view, (32, 32))
    assert str(error.value) == "`name` must be one of 'clip_norm', 'neighbor', got 'median'"
    with pytest.raises(ValueError, match="both") as error:
        make_refiner("clip_norm", view, (32, 32), quantile=0.9, mad_factor=5.0)
    assert str(error.value) == "`quantile` and `mad_factor` must not both be given, got 0.9 and 5.0; drop one"
    with pytest.raises(ValueError, match="`mad_factor` must be greater than 0, got 0"):
        make_refiner("clip_norm", view, (32, 32), mad_factor=0)


@pytest.mark.parametrize("outlier_block", [1, 3, -1])
def test_the_planted_unit_is_found(outlier_block):
    images = [planted.planted_images(batch=2), planted.planted_images(batch=1)]
    found = find_register_neurons(planted.planted_vit(), images, outlier_block=outlier_block, num_neurons=1)
    assert {block: units.tolist() for block, units in found.items()} == {1: [0]}


def test_found_units_are_grouped_by_block():
    images = [planted.planted_images(batch=2)]
    model = planted.planted_vit()
    found = find_register_neurons(model, images, outlier_block=2, num_neurons=24)  # all that there are
    assert {block: units.tolist() for block, units in found.items()} == {i: list(range(8)) for i in range(3)}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_units_are_ranked_by_magnitude_at_the_outliers_of_each_image_alike():
    model = planted.planted_vit()
    fc1, fc2 = (model.get_submodule(f"layers.1.mlp.{name}") for name in ("fc1", "fc2"))
    places = torch.zeros(1, 24, 8)
    places[0, list(planted.PLANTED), 1] = -2000.0  # only magnitude makes it the first
    places[0, 5, 2] = 9000.0  # no outlier is there
    handle = fc2.register_forward_pre_hook(lambda module, args: (args[0] + torch.cat([0 * places[:, :1], places], 1),))
    fc1.weight.data[1:].zero_()
    try:
        found = find_register_neurons(model, [planted.planted_images(2)], outlier_block=1, num_neurons=2)
    finally:
        handle.remove()
    assert found.keys() == {1}
    assert found[1].tolist() == [0, 1]


def test_nothing_to_find_is_an_error():
    model, images = planted.planted_vit(), [planted.planted_images(batch=1)]
    with pytest.raises(ValueError, match="nothing to move") as error:
        find_register_neurons(model, images, outlier_block=0, num_neurons=1)
    assert str(error.value) == (
        "`images` must have outliers behind block 0: nothing to move; take more, or a lower rule"
    )
    with pytest.raises(ValueError, match="`num_neurons`") as error:
        find_register_neurons(model, images, outlier_block=1, num_neurons=17)
    assert str(error.value) == "`num_neurons` must lie in [1, 16], got 17"
    with pytest.raises(ValueError, match="`outlier_block` must lie in") as error:
        find_register_neurons(model, images, outlier_block=4, num_neurons=1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_registers_take_the_outliers_off_the_patches():
    model = planted.planted_vit()
    assert OutlierRule().mask(patches_behind_every_block(model).norm(dim=-1)).any(-1).tolist() == [0, 1, 1, 1]
    registers = install_test_time_registers(model, BOTH_UNITS)
    clean = patches_behind_every_block(model)
    # Nothing but the two units ever changed a token.
    torch.testing.assert_close(clean, planted.expected_tokens(0).expand(4, -1, -1), rtol=1e-5, atol=1e-5)
    # The token of zeros has got what block 1 wrote onto the planted patches.
    written = torch.zeros(planted.WIDTH)
    written[planted.DIRECTION] = planted.LENGTH
    assert not registers.states[0].any()
    torch.testing.assert_close(registers.states[1], written.expand(2, 1, -1))


def test_found_neurons_can_be_installed():
    model = planted.planted_vit()
    images = [planted.planted_images(batch=2)]
    install_test_time_registers(model, find_register_neurons(model, images, outlier_block=1, num_neurons=1))
    torch.testing.assert_close(patches_behind_every_block(model)[1], planted.expected_tokens(0), rtol=1e-5, atol=1e-5)


def test_the_strongest_activation_moves_with_its_sign_and_class_tokens_are_left_alone():
    model = zoo.tiny("deit")  # two class tokens
    units, seen = torch.tensor([3, 7]), []
    fc_out = view_vit(model).mlp_layers(1)[1]
    handle = fc_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    install_test_time_registers(model, {1: units})
    fc_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    seen.clear()
    run(model, zoo.images())
    handle.remove()
    before, after = seen
    others = [unit for unit in range(64) if unit not in (3, 7)]
    assert torch.equal(after[..., others], before[..., others])
    assert torch.equal(after[:, :2], before[:, :2])
    assert not after[:, 3:, units].any()
    for image in range(2):
        for unit in (3, 7):
            strongest = max(before[image, 3:, unit].tolist(), key=abs)
            assert after[image, 2, unit] == strongest


@pytest.mark.parametrize("family", FREE_TOKENS)
def test_with_registers_everybody_sees_prefix_and_patches(family):
    model, pixel_values = zoo.tiny(family), zoo.images()
    before = run(model, pixel_values)
    registers = install_test_time_registers(model, {0: [0]})
    view = view_vit(model)
    capture = FeatureCapture(view, range(4), calls=range(4))
    with torch.no_grad():
        outputs = capture(pixel_values)
        shape = (2, zoo.FAMILIES[family].prefix + 16, zoo.HIDDEN)
        assert all(tokens.shape == shape for tokens in outputs.values())
        assert all(call.hidden_states.shape == shape for call in capture.calls.values())
        for index in (3, 1, 2, 1):  # a replay does not change what the next one gets
            replayed = capture.calls[index].replay(view.blocks[index], outputs[index - 1])
            assert torch.equal(replayed, outputs[index])
            capture.calls[index].replay(view.blocks[index], 2 * outputs[index - 1])
    changed = run(model, pixel_values)
    assert changed.shape == before.shape
    assert not torch.equal(changed, before)
    capture.remove()
    registers.remove()
    assert torch.equal(run(model, pixel_values), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", FIXED_TOKENS)
def test_blocks_tied_to_the_number_of_tokens_are_refused(family):
    model = zoo.tiny(family)
    before = run(model, zoo.images())
    with pytest.raises(ValueError, match="takes no test-time register") as error:
        install_test_time_registers(model, {0: [0]})
    name = type(view_vit(model).backbone).__name__
    assert str(error.value) == (
        f"{name} takes no test-time register: its blocks do not run with one token more than 1 prefix tokens and the "
        "patches; use another refiner (clip_norm, neighbor)"
    )
    assert torch.equal(run(model, zoo.images()), before)


def test_a_capture_that_was_there_before_sees_prefix_and_patches():
    model, pixel_values = zoo.tiny("vit"), zoo.images()
    early = FeatureCapture(view_vit(model), [1, 2], calls=[2])
    install_test_time_registers(model, {0: [0]})
    with torch.no_grad():
        outputs = early(pixel_values)
        late = capture_features(model, pixel_values, [1, 2])
        assert all(torch.equal(outputs[i], late[i]) for i in (1, 2))
        assert torch.equal(early.calls[2].hidden_states, outputs[1])
        assert torch.equal(early.calls[2].replay(early.view.blocks[2], outputs[1]), outputs[2])


def test_a_capture_of_calls_alone_sees_prefix_and_patches():
    model = zoo.tiny("vit")
    install_test_time_registers(model, {0: [0]})
    [call] = block_calls(view_vit(model), 2, [zoo.images()])
    assert call.hidden_states.shape == (2, 17, zoo.HIDDEN)


def test_gradients_reach_the_tokens_of_a_replay():
    model = zoo.tiny("dinov3")
    install_test_time_registers(model, {0: [0]})
    capture = FeatureCapture(view_vit(model), [1, 2], calls=[2])
    with torch.no_grad():
        tokens = capture(zoo.images())[1].clone()
    tokens.requires_grad_()
    capture.calls[2].replay(capture.view.blocks[2], tokens).square().sum().backward()
    assert tokens.grad.abs().sum() > 0


def test_a_replay_on_another_batch_is_refused():
    model = zoo.tiny("vit")
    install_test_time_registers(model, {0: [0]})
    block, message = (
        view_vit(model).blocks[1],
        ("block 1 needs the test-time register of a forward pass on the same 3 images; run the model on them first"),
    )
    with pytest.raises(ValueError, match="block 1 needs") as error:  # the model never ran
        block(torch.zeros(3, 17, zoo.HIDDEN))
    assert str(error.value) == message
    run(model, zoo.images(batch=2))
    with pytest.raises(ValueError, match="block 1 needs") as error:
        block(torch.zeros(3, 17, zoo.HIDDEN))
    assert str(error.value) == message


@pytest.mark.parametrize("family", ["vit", "dinov3", "timm_vit"])
def test_a_model_with_registers_can_be_copied_and_pickled(family):
    model, pixel_values = zoo.tiny(family), zoo.images()
    plain = run(model, pixel_values)
    registers = install_test_time_registers(model, {0: [0]})
    expected = run(model, pixel_values)
    model(pixel_values)  # with a graph, of which nothing may be left that cannot be copied
    for twins in (copy.deepcopy((model, registers)), pickle.loads(pickle.dumps((model, registers)))):
        twin, own = twins
        assert isinstance(own, TestTimeRegisters)
        assert torch.equal(run(twin, pixel_values), expected)
        own.remove()
        assert torch.equal(run(twin, pixel_values), plain)
        assert torch.equal(run(model, pixel_values), expected)


def test_neurons_that_are_not_there_are_refused():
    model = zoo.tiny("vit")
    for neurons, message in (
        ({4: [0]}, "`neurons` must name blocks in [0, 3], got 4"),
        ({1: [0, 64]}, "`neurons` must name units in [0, 63] for block 1, got [0, 64]"),
        ({1: [-1]}, "`neurons` must name units in [0, 63] for block 1, got [-1]"),
        ({1: []}, "`neurons` must name units in [0, 63] for block 1, got []"),
    ):
        with pytest.raises(ValueError, match="`neurons` must name") as error:
            install_test_time_registers(model, neurons)
        assert str(error.value) == message
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
