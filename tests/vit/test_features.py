"""Capture of block outputs and calls, replay, and the way from tokens to maps and back."""

import copy
import dataclasses
import pickle

import pytest
import torch
import zoo
from torch import Tensor, nn
from zoo import FAMILIES, every_family

from singer_hf.vit.features import FeatureCapture, capture_features
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import map_to_tokens, resize_tokens, split_tokens, tokens_to_map


class Teacher(nn.Module):
    """A model that carries a capture, as a distiller does: tokens after blocks 1 and 2, and block 2 replayed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.capture = FeatureCapture(view_vit(model), layers=(1, 2), calls=(2,))

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.capture(pixel_values)
        outputs, call = features.outputs, features.calls[2]
        return outputs[1], outputs[2], call.replay(self.capture.view.blocks[2], outputs[1])


def _outputs_by_plain_hooks(model: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    view, outputs = view_vit(model), []
    handles = [
        block.register_forward_hook(lambda m, a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for block in view.blocks
    ]
    with torch.no_grad():
        view.backbone(pixel_values, **view.forward_kwargs(pixel_values))
    for handle in handles:
        handle.remove()
    return outputs


@every_family
def test_capture_gives_the_raw_tokens_of_a_plain_forward_pass(family):
    model, pixel_values = zoo.tiny(family), zoo.images()
    expected = _outputs_by_plain_hooks(model, pixel_values)
    with torch.no_grad():
        features = capture_features(model, pixel_values, [0, 2, 3])
    assert list(features) == [0, 2, 3]
    for index, tokens in features.items():
        assert torch.equal(tokens, expected[index])


@every_family
def test_replay_of_the_recorded_call_is_exact(family):
    before, after, replayed = Teacher(zoo.tiny(family))(zoo.images())
    assert torch.equal(replayed, after)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.fixed_size])
def test_replay_is_exact_on_an_image_that_is_not_square(family):
    _, after, replayed = Teacher(zoo.tiny(family))(zoo.images(32, 48))
    assert after.shape[1] == FAMILIES[family].prefix + 24
    assert torch.equal(replayed, after)


@every_family
def test_capture_survives_deepcopy_and_pickle(family):
    teacher, pixel_values = Teacher(zoo.tiny(family)), zoo.images()
    expected = teacher(pixel_values)
    for twin in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert all(map(torch.equal, twin(pixel_values), expected))
        own_modules = set(map(id, twin.modules()))
        assert all(id(block) in own_modules for block in twin.capture.view.blocks)
        with torch.no_grad():
            twin.capture.view.blocks[0].register_forward_hook(lambda *_: pytest.fail("the twin was run"))
        assert all(map(torch.equal, teacher(pixel_values), expected))


@pytest.mark.parametrize("family", ["vit", "dinov3", "timm_eva_packed"])
def test_capture_compiles_into_one_graph(family):
    teacher, pixel_values = Teacher(zoo.tiny(family)), zoo.images()
    expected = teacher(pixel_values)
    torch._dynamo.reset()
    with teacher.capture:
        compiled = torch.compile(teacher, fullgraph=True, backend="eager")(pixel_values)
    for mine, its in zip(compiled, expected, strict=True):
        torch.testing.assert_close(mine, its)


def test_replay_passes_gradients_to_the_tokens_although_the_pass_recorded_none():
    teacher = Teacher(zoo.tiny("dinov3"))
    with torch.no_grad():
        features = teacher.capture(zoo.images())
    tokens = features.outputs[1].clone().requires_grad_()
    features.calls[2].replay(teacher.capture.view.blocks[2], tokens).square().sum().backward()
    assert tokens.grad.abs().sum() > 0


def test_write_is_the_output_without_the_skip_path():
    teacher = Teacher(zoo.tiny("vit"))
    features = teacher.capture(zoo.images())
    written = features.calls[2].write(teacher.capture.view.blocks[2], features.outputs[1])
    assert torch.equal(written, features.outputs[2] - features.outputs[1])


def test_no_block_after_the_last_needed_one_is_run():
    model = zoo.tiny("vit_classifier")
    ran = []
    for index, block in enumerate(model.vit.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.vit.layernorm.register_forward_hook(lambda *_: ran.append("norm"))
    model.classifier.register_forward_hook(lambda *_: ran.append("head"))
    capture_features(model, zoo.images(), [1])
    assert ran == [0, 1]
    ran.clear()
    FeatureCapture(view_vit(model), layers=(1,), calls=(2,))(zoo.images())
    assert ran == [0, 1]  # the call of block 2 is known before it runs


def test_a_capture_leaves_the_models_own_forward_pass_alone():
    model, pixel_values = zoo.tiny("vit"), zoo.images()
    with torch.no_grad():
        expected = model(pixel_values).last_hidden_state
        features = FeatureCapture(view_vit(model), [1])(pixel_values)
        assert torch.equal(model(pixel_values).last_hidden_state, expected)
    assert features.outputs.keys() == {1}


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_and_tensors_are_gone_after_a_pass_and_after_a_failed_pass():
    model = zoo.tiny("vit")
    capture = FeatureCapture(view_vit(model), [0], calls=[1])
    capture(zoo.images())
    assert (count_hooks(model), capture.features) == (0, None)
    with pytest.raises(ValueError, match="channel"):
        capture(zoo.images()[:, :1])
    assert (count_hooks(model), capture.features) == (0, None)


def test_within_the_context_the_hooks_stay_until_its_outermost_end():
    model = zoo.tiny("vit")
    capture = FeatureCapture(view_vit(model), [0], calls=[1])
    with capture:
        with capture:
            capture(zoo.images())
        assert count_hooks(model) == 2
    assert count_hooks(model) == 0


def test_masked_autoencoders_keep_their_patches_in_order():
    model = zoo.tiny("vit_mae")
    pixel_values = zoo.images()
    moved = pixel_values.clone()
    moved[:, :, :8, 8:16] += 1.0  # the second patch of the first row
    with torch.no_grad():
        embedded = view_vit(model).blocks[0]
        seen = []
        embedded.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        capture_features(model, pixel_values, [0])
        capture_features(model, moved, [0])
    changed = (seen[0] != seen[1]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [1 + 1]


def test_tokens_that_are_not_prefix_plus_grid_are_refused():
    view = dataclasses.replace(view_vit(zoo.tiny("vit")), num_prefix_tokens=3)
    with pytest.raises(ValueError, match="cannot be laid out on a grid") as error:
        FeatureCapture(view, [1])(zoo.images())
    assert str(error.value) == (
        "ViTModel returned tokens of shape (2, 17, 32) for images of shape (2, 3, 32, 32), expected (2, 19, 32): 3 "
        "prefix tokens and a 4 x 4 grid. Its tokens cannot be laid out on a grid"
    )


def test_a_masking_autoencoder_changed_after_the_view_was_taken_is_refused():
    model = zoo.tiny("vit_mae")
    view = view_vit(model)
    model.config.mask_ratio = 0.75
    with pytest.raises(ValueError, match=r"returned tokens of shape \(2, 5, 32\)"):
        FeatureCapture(view, [1])(zoo.images())


def test_split_and_map_go_there_and_back():
    tokens = torch.arange(2 * 8 * 3, dtype=torch.float32).reshape(2, 8, 3)
    prefix, patches = split_tokens(tokens, 2)
    assert torch.equal(torch.cat([prefix, patches], dim=1), tokens)
    feature_map = tokens_to_map(patches, (2, 3))
    assert feature_map.shape == (2, 3, 2, 3)
    assert torch.equal(feature_map[1, :, 1, 2], tokens[1, 2 + 5])  # row 1, column 2 is patch 5
    assert torch.equal(map_to_tokens(feature_map), patches)


def test_split_without_prefix_tokens_keeps_every_token():
    tokens = torch.randn(2, 4, 3)
    prefix, patches = split_tokens(tokens, 0)
    assert prefix.shape == (2, 0, 3)
    assert torch.equal(patches, tokens)


def test_a_map_needs_as_many_tokens_as_the_grid():
    with pytest.raises(ValueError, match="do not fill") as error:
        tokens_to_map(torch.zeros(1, 7, 3), (2, 3))
    assert str(error.value) == "7 patch tokens do not fill a grid of 2 x 3"


def test_resize_keeps_what_is_constant_and_linear_and_leaves_equal_grids_alone():
    rows = torch.arange(8.0).reshape(1, 8, 1).repeat_interleave(4, dim=1)  # 8 x 4 map that grows by one a row
    assert resize_tokens(rows, (8, 4), (8, 4)) is rows
    half = tokens_to_map(resize_tokens(rows, (8, 4), (4, 2)), (4, 2))[0, 0]
    torch.testing.assert_close(half[1:3], torch.tensor([[2.5, 2.5], [4.5, 4.5]]))
    constant = torch.full((1, 6, 2), 3.0)
    torch.testing.assert_close(resize_tokens(constant, (2, 3), (4, 5)), torch.full((1, 20, 2), 3.0))


def test_capture_works_in_half_precision_on_the_models_own_dtype():
    model = zoo.tiny("vit").to(torch.bfloat16)
    features = capture_features(model, zoo.images().bfloat16(), [1])
    assert features[1].dtype == torch.bfloat16


@pytest.mark.gpu
def test_replay_is_exact_on_a_gpu():
    teacher = Teacher(zoo.tiny("dinov3")).cuda()
    _, after, replayed = teacher(zoo.images().cuda())
    assert torch.equal(replayed, after)
