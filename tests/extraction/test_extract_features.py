"""Features of images and pixel values: equal to plain forward passes, for every family, with and without adapters."""

import re

import PIL.Image
import pytest
import torch
import transformers as hf
import zoo
from adapters import attach
from labelled import colour_image
from noise_images import noise
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor
from zoo import FAMILIES, every_family

from singer_hf import extract_features
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.vit.structure import view_vit

QUIET = {"progress": False}
PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32})


def plain_outputs(model, pixel_values):
    """Tokens after every block of a plain forward pass, at SiNGER adapters after the wrapper around the block."""
    view, layers, outputs = view_vit(model), find_singer_layers(model), {}

    def keep(index):
        return lambda module, args, output: outputs.update({index: output[0] if isinstance(output, tuple) else output})

    handles = [layers.get(i, block).register_forward_hook(keep(i)) for i, block in enumerate(view.blocks)]
    with torch.no_grad():
        view.backbone(pixel_values, **view.forward_kwargs(pixel_values))
    for handle in handles:
        handle.remove()
    return outputs


def as_map(tokens, prefix, rows, columns):
    batch, _, width = tokens.shape
    return tokens[:, prefix:].permute(0, 2, 1).reshape(batch, width, rows, columns)


@every_family
def test_tokens_are_those_of_a_plain_forward_pass_and_maps_the_patches_on_their_grid(family):
    model, pixel_values = zoo.tiny(family), zoo.images()
    expected, prefix = plain_outputs(model, pixel_values), FAMILIES[family].prefix
    tokens = extract_features(model, pixel_values, layers=[-1, 1], output="tokens", **QUIET)
    assert list(tokens) == [3, 1]
    assert all(torch.equal(tokens[index], expected[index]) for index in tokens)
    maps = extract_features(model, pixel_values, layers=[1, 3], **QUIET)
    assert maps[1].shape == (2, zoo.HIDDEN, 4, 4)
    assert all(torch.equal(maps[index], as_map(expected[index], prefix, 4, 4)) for index in (1, 3))
    assert torch.equal(extract_features(model, pixel_values, **QUIET), maps[3])


@every_family
def test_adapters_refine_their_own_block_and_those_after_it(family):
    plain = extract_features(zoo.tiny(family), zoo.images(), layers=range(4), output="tokens", **QUIET)
    model = attach(zoo.tiny(family), layers_to_transform=[1, 3])
    inline = plain_outputs(model, zoo.images())
    refined = extract_features(model, zoo.images(), layers=range(4), output="tokens", **QUIET)
    for index in range(4):
        assert torch.equal(refined[index], inline[index])
        assert torch.equal(refined[index], plain[index]) == (index == 0)
    prefix = FAMILIES[family].prefix
    assert torch.equal(refined[1][:, :prefix], plain[1][:, :prefix])


def test_disabled_and_bypassed_adapters_change_nothing():
    plain = extract_features(zoo.tiny("dinov2"), zoo.images(), **QUIET)
    model = attach(zoo.tiny("dinov2"), layers_to_transform=[1, 3])
    with model.disable_adapter():
        assert torch.equal(extract_features(model, zoo.images(), **QUIET), plain)
    with raw_features(find_singer_layers(model).values()):
        assert torch.equal(extract_features(model, zoo.images(), **QUIET), plain)
    assert not torch.equal(extract_features(model, zoo.images(), **QUIET), plain)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.fixed_size])
def test_a_larger_size_than_that_of_the_config(family):
    model = zoo.tiny(family)
    found = extract_features(model, noise(0, 50), processor=PROCESSOR, image_size=(48, 64), **QUIET)
    assert found.shape == (1, zoo.HIDDEN, 6, 8)
    pixel_values = zoo.images(48, 64)
    expected = plain_outputs(model, pixel_values)[3]
    found = extract_features(model, pixel_values, **QUIET)
    assert torch.equal(found, as_map(expected, FAMILIES[family].prefix, 6, 8))


@pytest.mark.parametrize("family", ["timm_vit", "timm_eva_packed"])
def test_a_model_that_does_not_interpolate_names_its_size(family):
    message = (
        "`image_size` must be 32 x 32 for this TimmWrapperModel, which does not interpolate, got images of 48 x 48 "
        "pixels ("
    )
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        extract_features(zoo.tiny(family), noise(0), processor=PROCESSOR, image_size=48, **QUIET)
    assert str(caught.value).endswith("); a timm model takes other sizes with `dynamic_img_size=True`")


def test_the_final_norm_is_that_of_the_model():
    model, pixel_values = zoo.tiny("dinov2_registers"), zoo.images()
    with torch.no_grad():
        expected = model(pixel_values).last_hidden_state
    assert torch.equal(extract_features(model, pixel_values, output="tokens", norm=True, **QUIET), expected)
    assert not torch.equal(extract_features(model, pixel_values, output="tokens", **QUIET), expected)


@pytest.mark.parametrize("family", ["vit", "dinov3", "timm_dinov2", "beit"])
def test_the_result_does_not_depend_on_the_batch_size(family):
    model, pixel_values = attach(zoo.tiny(family)), zoo.images(batch=7)
    whole = extract_features(model, pixel_values, **QUIET)
    for size in (1, 3):
        assert torch.allclose(extract_features(model, pixel_values, batch_size=size, **QUIET), whole, atol=1e-4)


def test_batches_of_every_form_give_one_tensor():
    model, pixel_values = zoo.tiny("vit"), zoo.images(batch=5)
    expected = extract_features(model, pixel_values, batch_size=1, **QUIET)
    rows = [{"pixel_values": row} for row in pixel_values]
    forms = (
        {"pixel_values": pixel_values},
        list(pixel_values.split(2)),
        (batch for batch in pixel_values.split(3)),
        DataLoader(rows, batch_size=2),
    )
    for images in forms:
        assert torch.allclose(extract_features(model, images, batch_size=2, **QUIET), expected, atol=1e-5)


def test_images_are_prepared_as_by_the_processor_and_turned_by_their_exif():
    model, images = zoo.tiny("vit"), [colour_image(i % 3, i, (20, 40)) for i in range(5)]
    pixel_values = PROCESSOR(images, return_tensors="pt")["pixel_values"]
    expected = extract_features(model, pixel_values, **QUIET)
    found = extract_features(model, images, processor=PROCESSOR, batch_size=2, **QUIET)
    assert torch.allclose(found, expected, atol=1e-4)
    single = extract_features(model, images[0].convert("RGBA"), processor=PROCESSOR, **QUIET)
    assert torch.allclose(single, expected[:1], atol=1e-4)
    turned = images[1].transpose(PIL.Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # shown after a turn by 90 degrees to the right
    assert torch.allclose(extract_features(model, turned, processor=PROCESSOR, **QUIET), expected[1:2], atol=1e-4)


def test_the_model_keeps_its_modes_gradients_and_hooks():
    model = zoo.tiny("vit").train()
    model.layers[0].eval()
    before = [parameter.clone() for parameter in model.parameters()]
    found = extract_features(model, zoo.images(), device="cpu", **QUIET)
    assert not found.requires_grad
    assert torch.equal(found, extract_features(model.eval(), zoo.images(), **QUIET))
    model.train().layers[0].eval()
    with pytest.raises(ValueError, match="got features of shapes"):
        extract_features(model, [zoo.images(), zoo.images(48)], **QUIET)
    assert model.training
    assert not model.layers[0].training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(p, q) and p.requires_grad for p, q in zip(model.parameters(), before, strict=True))


def test_float16_halves_the_storage_and_refuses_what_it_cannot_hold():
    model = zoo.tiny("vit")
    full, half = (extract_features(model, zoo.images(), dtype=dtype, **QUIET) for dtype in ("float32", torch.float16))
    assert half.dtype == torch.float16
    assert torch.equal(half, full.half())
    with torch.no_grad():
        model.layers[-1].mlp.fc2.bias.fill_(1e6)
    message = r"`dtype` must be 'float32' for features as large as 1e\+06, got 'float16', which ends at 65504"
    with pytest.raises(ValueError, match=message):
        extract_features(model, zoo.images(), dtype="float16", **QUIET)


def test_a_half_precision_model_gets_its_own_type():
    model = zoo.tiny("vit").to(torch.bfloat16)
    assert extract_features(model, zoo.images(), **QUIET).dtype == torch.float32


def test_a_folder_brings_its_processor_and_an_adapter(tmp_path):
    attach(zoo.tiny("vit"), init_scale=1.0).save_pretrained(tmp_path / "adapter")
    zoo.tiny("vit").save_pretrained(tmp_path / "teacher")
    PROCESSOR.save_pretrained(tmp_path / "teacher")
    image, teacher = noise(0, 40), str(tmp_path / "teacher")
    plain = extract_features(teacher, image, device="cpu", **QUIET)
    loaded = hf.ViTModel.from_pretrained(teacher)  # knows the folder it is from
    assert torch.equal(extract_features(loaded, image, **QUIET), plain)
    refined = extract_features(teacher, image, adapter_name_or_path=tmp_path / "adapter", device="cpu", **QUIET)
    expected = extract_features(attach(zoo.tiny("vit")), image, processor=PROCESSOR, **QUIET)
    assert torch.allclose(refined, expected, atol=1e-6)
    assert not torch.allclose(refined, plain, atol=1e-2)
    message = "`adapter_name_or_path` must be None for a module, which would be changed, got 'adapter'; load it"
    with pytest.raises(ValueError, match=message):
        extract_features(loaded, image, adapter_name_or_path="adapter")


def test_a_convolutional_network_gives_its_stages():
    torch.manual_seed(0)
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    model, pixel_values = hf.ResNetModel(config).eval(), zoo.images(32, 64)
    with torch.no_grad():
        expected = model(pixel_values, output_hidden_states=True).hidden_states
    assert torch.equal(extract_features(model, pixel_values, **QUIET), expected[-1])
    tokens = extract_features(model, pixel_values, layers=[0, -1], output="tokens", **QUIET)
    assert list(tokens) == [0, 2]
    assert torch.equal(tokens[2], expected[2].flatten(2).mT)
    with pytest.raises(ValueError, match=r"`norm` must be False for a model that is no vision transformer, got True"):
        extract_features(model, pixel_values, norm=True)
