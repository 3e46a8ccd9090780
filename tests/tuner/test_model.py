"""The adapter on a model: where it sits, how it starts, what it changes and what it leaves alone."""

import copy
import pickle

import pytest
import torch
import zoo
from adapters import attach, last_hidden_state, weights
from peft import get_peft_model
from torch import nn
from zoo import every_family, images, tiny, tiny_vit

from singer_hf import SingerConfig, SingerLayer, SingerModel
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.tuner.model import adapter_settings
from singer_hf.vit.features import first_tensor

D = zoo.HIDDEN
pytestmark = pytest.mark.filterwarnings("ignore:.*exceeds the effective null dimension")


def test_the_names_and_shapes_of_the_contract():
    peft_teacher = attach(tiny_vit(), r=5, layers_to_transform=[1, -1])
    singer = peft_teacher.base_model
    assert isinstance(singer, SingerModel)
    assert list(singer.singer_layers) == [1, 3]
    for layer in singer.singer_layers.values():
        assert isinstance(layer, SingerLayer)
        down, up = layer.singer_down["default"], layer.singer_up["default"]
        assert isinstance(down, nn.Linear)
        assert isinstance(up, nn.Linear)
        assert (down.weight.shape, up.weight.shape) == ((5, D), (D, 5))
        assert down.bias is None
        assert up.bias is None


@pytest.mark.parametrize(("num_blocks", "layers"), [(24, [17, 23]), (12, [8, 11]), (6, [3, 5])])
def test_default_blocks(num_blocks, layers):
    assert list(attach(tiny_vit(num_blocks)).base_model.singer_layers) == layers


@every_family
def test_prefix_tokens_come_out_as_they_went_in_and_patches_are_refined(family):
    model = tiny(family)
    peft_model = attach(model, layers_to_transform=[1])
    layer, seen = peft_model.base_model.singer_layers[1], {}
    layer.base_layer.register_forward_hook(lambda m, a, out: seen.update(raw=out))
    layer.register_forward_hook(lambda m, a, out: seen.update(refined=out))
    last_hidden_state(peft_model)
    assert type(seen["raw"]) is type(seen["refined"])
    raw, refined = first_tensor(seen["raw"]), first_tensor(seen["refined"])
    prefix = zoo.FAMILIES[family].prefix
    assert layer.num_prefix_tokens["default"] == prefix
    assert torch.equal(refined[:, :prefix], raw[:, :prefix])
    down, up = weights(peft_model, 1)
    patches = raw[:, prefix:]
    torch.testing.assert_close(refined[:, prefix:], patches + patches @ down @ up)
    assert (refined[:, prefix:] != raw[:, prefix:]).any(-1).all()


@every_family
def test_unload_gives_back_the_plain_model_bit_for_bit(family):
    model = tiny(family)
    expected, names = last_hidden_state(model), set(model.state_dict())
    peft_model = attach(model)
    assert not torch.equal(last_hidden_state(peft_model), expected)
    plain = peft_model.unload()
    assert type(plain) is type(tiny(family))
    assert not any(isinstance(module, SingerLayer) for module in plain.modules())
    assert set(plain.state_dict()) == names
    assert torch.equal(last_hidden_state(plain), expected)


@every_family
def test_only_the_adapter_is_trained(family):
    peft_model = attach(tiny(family))
    trained = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4
    assert all("singer_down.default" in name or "singer_up.default" in name for name in trained)
    peft_model(images())[0].square().sum().backward()
    for name, parameter in peft_model.named_parameters():
        assert (parameter.grad is not None) == (name in trained)


def test_print_trainable_parameters_counts_the_adapter(capsys):
    attach(tiny_vit(), r=5).print_trainable_parameters()
    total = sum(parameter.numel() for parameter in tiny_vit().parameters())
    added = 2 * 2 * 5 * D
    assert capsys.readouterr().out.startswith(f"trainable params: {added} || all params: {total + added:,} || ")


# --- several adapters, switching them --------------------------------------------------------------------------------


def other_adapter(*layers: int) -> SingerConfig:
    return SingerConfig(r=6, layers_to_transform=list(layers), init_weights="random", init_seed=3, gate="none")


def test_several_adapters_are_switched_added_and_deleted():
    model = tiny_vit()
    raw = last_hidden_state(model)
    peft_model = attach(model, layers_to_transform=[1])
    first = last_hidden_state(peft_model)
    peft_model.add_adapter("other", other_adapter(1, 3))
    assert torch.equal(last_hidden_state(peft_model), first)  # adding does not activate
    peft_model.set_adapter("other")
    second = last_hidden_state(peft_model)
    assert not torch.equal(second, first)
    trained = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4
    assert all(".other." in name for name in trained)
    peft_model.set_adapter("default")
    assert torch.equal(last_hidden_state(peft_model), first)
    peft_model.delete_adapter("default")
    assert list(peft_model.peft_config) == ["other"]
    assert not any(".default." in name for name, _ in peft_model.named_parameters())
    peft_model.set_adapter("other")
    assert torch.equal(last_hidden_state(peft_model), second)
    with peft_model.disable_adapter():
        assert torch.equal(last_hidden_state(peft_model), raw)
    assert torch.equal(last_hidden_state(peft_model), second)


def test_active_adapters_add_up_on_the_same_raw_tokens():
    peft_model = attach(tiny_vit(), layers_to_transform=[1])
    peft_model.add_adapter("other", other_adapter(1))
    peft_model.base_model.set_adapter(["default", "other"])
    tokens = torch.randn(2, 17, D)
    with torch.no_grad():
        refined = peft_model.base_model.singer_layers[1].refine(tokens)
    change = sum(
        tokens[:, 1:] @ down @ up for down, up in (weights(peft_model, 1, name) for name in ("default", "other"))
    )
    torch.testing.assert_close(refined[:, 1:], tokens[:, 1:] + change)


def test_raw_features_end_after_an_error_too():
    peft_model = attach(tiny_vit())
    refined = last_hidden_state(peft_model)
    with pytest.raises(ValueError, match="channel"), raw_features(find_singer_layers(peft_model).values()):
        peft_model(images()[:, :1])
    assert torch.equal(last_hidden_state(peft_model), refined)


def test_raw_features_bypasses_adapters_and_leaves_flags_alone():
    model = tiny_vit()
    raw = last_hidden_state(model)
    peft_model = attach(model)
    frozen = next(peft_model.base_model.singer_layers[2].adapter_parameters())
    frozen.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in peft_model.parameters()]
    with raw_features(find_singer_layers(peft_model).values()):
        assert torch.equal(last_hidden_state(peft_model), raw)
    assert [parameter.requires_grad for parameter in peft_model.parameters()] == flags
    assert not torch.equal(last_hidden_state(peft_model), raw)


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_merging_is_refused_and_says_what_to_do_instead(merge):
    peft_model = attach(tiny_vit())
    with pytest.raises(NotImplementedError, match="cannot be merged") as error:
        getattr(peft_model, merge)()
    assert str(error.value) == (
        "a SiNGER adapter cannot be merged: it acts after a residual block, on patch tokens only. Use `unload()` to "
        "get the plain teacher back or `disable_adapter()` to bypass the adapter"
    )
    assert len(peft_model.base_model.singer_layers) == 2  # the failed call left everything in place


@pytest.mark.parametrize(
    "name", ["0", "17", "singer", "singer_", "sing", "_", "singer_x", "a.b", "layers", "weight", "model"]
)
def test_adapter_names_that_break_key_matching_are_refused(name):
    peft_model = attach(tiny_vit())
    for call in (
        lambda: get_peft_model(tiny_vit(), SingerConfig(r=4), adapter_name=name),
        lambda: peft_model.add_adapter(name, SingerConfig(r=4)),
    ):
        with pytest.raises(ValueError, match="adapter_name") as error:
            call()
        assert str(error.value) == (
            "`adapter_name` must not be a number, contain a dot, be a part of 'singer_' or start with it, or be one "
            f"of 'base_model', 'model', 'layers', 'weight', got {name!r}; such names break the matching of saved keys"
        )
    assert list(peft_model.peft_config) == ["default"]


@pytest.mark.parametrize("name", ["half", "train", "keys"])
def test_adapter_names_that_a_module_cannot_have_are_refused(name):
    with pytest.raises(ValueError, match="adapter_name") as error:
        get_peft_model(tiny_vit(), SingerConfig(r=4), adapter_name=name)
    assert str(error.value) == (
        f"`adapter_name` must not be the name of an attribute of torch.nn.ModuleDict, got {name!r}"
    )


def test_excluded_blocks_are_left_out():
    peft_model = attach(tiny_vit(), layers_to_transform=[1, 3], exclude_modules=["layers.1"])
    assert list(peft_model.base_model.singer_layers) == [3]
    assert adapter_settings(peft_model)["layers_to_transform"] == [3]


def test_a_given_prefix_count_is_kept():
    peft_model = attach(tiny_vit(), layers_to_transform=[1], num_prefix_tokens=3)
    tokens = torch.randn(1, 17, D)
    with torch.no_grad():
        refined = peft_model.base_model.singer_layers[1].refine(tokens)
    assert torch.equal(refined[:, :3], tokens[:, :3])
    assert (refined[:, 3:] != tokens[:, 3:]).any(-1).all()


def test_an_unsupported_model_is_refused_by_get_peft_model_too():
    build, message = zoo.REFUSED["cnn"]
    with pytest.raises(ValueError, match="ResNetModel is not supported") as error:
        get_peft_model(build(), SingerConfig(r=4))
    assert str(error.value) == message


# --- dtypes, copies, compilation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", ["mlp", "block", "jacobian"])
def test_a_half_precision_teacher_keeps_its_dtype_and_the_adapter_is_float32(dtype, source):
    model = tiny_vit().to(dtype)
    peft_model = attach(
        model, init_weights="nullspace", nullspace_source=source, calibration_images=images(), layers_to_transform=[1]
    )
    layer = peft_model.base_model.singer_layers[1]
    assert {parameter.dtype for parameter in layer.adapter_parameters()} == {torch.float32}
    out = last_hidden_state(peft_model, images().to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()
    down, _ = weights(peft_model, 1)
    torch.testing.assert_close(down.T @ down, torch.eye(4), atol=1e-5, rtol=0)
    tokens = torch.randn(1, 17, D).to(dtype)
    refined = layer.refine(tokens)
    assert refined.dtype == dtype
    expected = tokens[:, 1:].float() + tokens[:, 1:].float() @ down @ weights(peft_model, 1)[1]
    torch.testing.assert_close(refined[:, 1:].float(), expected, atol=0.05, rtol=0.02)


@every_family
def test_deepcopy_and_pickle_give_an_equal_and_independent_model(family):
    peft_model = attach(tiny(family), layers_to_transform=[1])
    expected = last_hidden_state(peft_model)
    for twin in (copy.deepcopy(peft_model), pickle.loads(pickle.dumps(peft_model))):
        assert torch.equal(last_hidden_state(twin), expected)
        with torch.no_grad():
            twin.base_model.singer_layers[1].singer_up["default"].weight.add_(1.0)
        assert not torch.equal(last_hidden_state(twin), expected)
        assert torch.equal(last_hidden_state(peft_model), expected)


@pytest.mark.parametrize("family", ["vit", "data2vec", "timm_vit"])
def test_a_wrapped_model_compiles_into_one_graph(family):
    peft_model = attach(tiny(family), layers_to_transform=[1])
    expected = last_hidden_state(peft_model)
    torch._dynamo.reset()
    compiled = torch.compile(peft_model.base_model.model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images())[0], expected)


def test_attaching_to_a_model_on_the_meta_device_computes_nothing():
    with torch.device("meta"):
        model = zoo.FAMILIES["vit"].build()
    peft_model = get_peft_model(model, SingerConfig(r=4))
    for layer in peft_model.base_model.singer_layers.values():
        assert layer.singer_down["default"].weight.shape == (4, D)


def test_low_cpu_mem_usage_puts_the_adapter_on_the_meta_device():
    peft_model = get_peft_model(tiny_vit(), SingerConfig(r=4), low_cpu_mem_usage=True)
    for layer in peft_model.base_model.singer_layers.values():
        assert all(parameter.is_meta for parameter in layer.adapter_parameters())
        assert not any(parameter.is_meta for parameter in layer.base_layer.parameters())


@pytest.mark.gpu
def test_the_adapter_is_made_on_the_models_gpu_and_follows_it():
    peft_model = attach(tiny_vit().cuda(), init_weights="nullspace")
    assert all(parameter.is_cuda for parameter in peft_model.parameters())
    out = last_hidden_state(peft_model, images().cuda())
    torch.testing.assert_close(last_hidden_state(peft_model.cpu()), out.cpu(), atol=1e-3, rtol=1e-3)
