"""Test-time registers: the neurons they are found by, and what everybody sees while they are installed."""

import copy
import pickle

import planted
import pytest
import torch
import zoo
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.register_search import find_register_neurons
from singer_hf.baselines.cleanups.registers import TestTimeRegisters, install_test_time_registers
from singer_hf.tuner.nullspace_sources import record_block_calls
from singer_hf.vit.features import FeatureCapture, capture_features
from singer_hf.vit.structure import view_vit

# Their blocks tie a position bias or rotary embeddings to P+N tokens.
FIXED_TOKENS = ("beit", "data2vec", "timm_eva_packed", "timm_eva_separate")
FREE_TOKENS = sorted(set(zoo.FAMILIES) - set(FIXED_TOKENS))
BOTH_UNITS = {1: torch.tensor([0]), 2: torch.tensor([0])}


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
    with pytest.raises(ValueError, match="must have outliers") as error:
        find_register_neurons(model, images, outlier_block=0, num_neurons=1)
    assert str(error.value) == (
        "`images` must have outliers after block 0, got none; use more images or a lower threshold"
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
    with torch.no_grad():
        capture = FeatureCapture(view, range(4), calls=range(4))(pixel_values)
        outputs = capture.outputs
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
        "patches; use another method (clip_norm, neighbor)"
    )
    assert torch.equal(run(model, zoo.images()), before)


def test_a_capture_that_was_there_before_sees_prefix_and_patches():
    model, pixel_values = zoo.tiny("vit"), zoo.images()
    early = FeatureCapture(view_vit(model), [1, 2], calls=[2])
    with early, torch.no_grad():
        install_test_time_registers(model, {0: [0]})
        features = early(pixel_values)
        outputs = features.outputs
        late = capture_features(model, pixel_values, [1, 2])
        assert all(torch.equal(outputs[i], late[i]) for i in (1, 2))
        assert torch.equal(features.calls[2].hidden_states, outputs[1])
        assert torch.equal(features.calls[2].replay(early.view.blocks[2], outputs[1]), outputs[2])


def test_a_capture_of_calls_alone_sees_prefix_and_patches():
    model = zoo.tiny("vit")
    install_test_time_registers(model, {0: [0]})
    [call] = record_block_calls(view_vit(model), 2, [zoo.images()])
    assert call.hidden_states.shape == (2, 17, zoo.HIDDEN)


def test_gradients_reach_the_tokens_of_a_replay():
    model = zoo.tiny("dinov3")
    install_test_time_registers(model, {0: [0]})
    capture = FeatureCapture(view_vit(model), [1, 2], calls=[2])
    with torch.no_grad():
        features = capture(zoo.images())
        tokens = features.outputs[1].clone()
    tokens.requires_grad_()
    features.calls[2].replay(capture.view.blocks[2], tokens).square().sum().backward()
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


def test_the_units_are_copied_to_a_device_once_and_not_in_every_pass():
    registers = install_test_time_registers(planted.planted_vit(), BOTH_UNITS)
    meta = torch.device("meta")
    first = registers.units(1, meta)
    assert first.device == meta
    assert registers.units(1, meta) is first
    assert registers.units(1, torch.device("cpu")).tolist() == [0]
