"""The parts that the search finds in every family, and the models it refuses."""

import copy

import pytest
import torch
import transformers as hf
import zoo
from block_taps import BLOCK, run_backbone, tap
from peft import get_peft_model
from zoo import FAMILIES, every_family

from singer_hf import SingerConfig
from singer_hf.vit.structure import view_vit


@every_family
def test_view_names_every_part(family):
    model, expected = zoo.tiny(family), FAMILIES[family]
    view = view_vit(model)
    assert view.blocks_path == expected.path
    assert view.num_blocks == len(view.blocks) == zoo.BLOCKS
    assert view.blocks[2] is model.get_submodule(view.block_name(2))
    assert view.hidden_size == zoo.HIDDEN
    assert view.num_prefix_tokens == expected.prefix
    assert view.patch_size == (zoo.PATCH, zoo.PATCH)
    assert view.image_size == (zoo.IMAGE, zoo.IMAGE)
    assert (view.final_norm is not None) == expected.final_norm
    assert [view.next_block(i) for i in range(4)] == [1, 2, 3, 3]


@every_family
def test_view_needs_neither_a_forward_pass_nor_weights(family):
    with torch.device("meta"):
        model = FAMILIES[family].build()
    assert next(model.parameters()).is_meta
    view, real = view_vit(model), view_vit(zoo.tiny(family))
    for name in ("blocks_path", "num_blocks", "hidden_size", "num_prefix_tokens", "patch_size", "image_size"):
        assert getattr(view, name) == getattr(real, name), name
    assert view.grid(32, 48) == (4, 6)
    for mine, its in zip(view.mlp_weights(BLOCK), real.mlp_weights(BLOCK), strict=True):
        assert mine.is_meta
        assert mine.shape == its.shape
    projections = list(view.input_projections(BLOCK))
    assert [projection.name for projection in projections] == [item.name for item in real.input_projections(BLOCK)]
    assert all(projection.matrix().is_meta for projection in projections)


@every_family
def test_the_final_norm_is_the_one_after_the_last_block(family):
    view = view_vit(model := zoo.tiny(family))
    if view.final_norm is None:
        pytest.skip("this family pools without a norm over all tokens")
    seen = tap({"block": view.blocks[-1], "norm": view.final_norm})
    run_backbone(model)
    tokens, norm_input = seen["block"][1], seen["norm"][0]
    if norm_input.dim() == 3:
        assert torch.equal(norm_input, tokens)
    else:  # norms after the pooling: of CLIP's class token, of the mean patch in timm's EVA
        pooled = (tokens[:, 0], tokens[:, view.num_prefix_tokens :].mean(1))
        assert any(torch.allclose(norm_input, candidate, atol=1e-6) for candidate in pooled)


@pytest.mark.parametrize("kind", zoo.REFUSED)
def test_what_is_not_a_plain_vit_is_refused_by_name_and_reason(kind):
    build, message = zoo.REFUSED[kind]
    with pytest.raises(ValueError, match="is not supported") as error:
        view_vit(build())
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("build", "path"),
    [
        (
            lambda: hf.CLIPModel(hf.CLIPConfig(text_config=zoo.TEXT, vision_config=zoo.SIZES)),
            "vision_model.encoder.layers",
        ),
        (
            lambda: hf.SiglipModel(
                hf.SiglipConfig(
                    text_config={**zoo.TEXT, "max_position_embeddings": 8},
                    vision_config={**zoo.SIZES, "hidden_size": 32},
                )
            ),
            "vision_model.encoder.layers",
        ),
        (
            lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**zoo.SIZES)),
            "vision_model.encoder.layers",
        ),
        (
            lambda: hf.ViTMAEForPreTraining(
                hf.ViTMAEConfig(
                    **zoo.SIZES,
                    mask_ratio=0.0,
                    decoder_hidden_size=32,
                    decoder_num_hidden_layers=4,
                    decoder_num_attention_heads=2,
                    decoder_intermediate_size=64,
                )
            ),
            "vit.layers",
        ),
        (lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**zoo.SIZES)), "deit.layers"),
        (lambda: hf.BeitForImageClassification(hf.BeitConfig(**zoo.SIZES)), "beit.layers"),
        (lambda: hf.Dinov2Backbone(hf.Dinov2Config(**zoo.SIZES)), "encoder.layer"),
    ],
    ids=["clip", "siglip", "clip_projection", "mae_pretraining", "deit_distilled", "beit_classifier", "backbone"],
)
def test_the_vision_encoder_is_found_beside_text_towers_decoders_and_heads(build, path):
    view = view_vit(build())
    assert view.blocks_path == path
    assert view.num_blocks == zoo.BLOCKS


def test_a_raw_timm_model_has_a_view():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2)
    view = view_vit(model)
    assert (view.blocks_path, view.num_prefix_tokens, view.image_size) == ("blocks", 1, (32, 32))


def test_adapters_do_not_change_the_view():
    model = zoo.tiny_vit()
    plain = view_vit(model)
    wrapped = view_vit(get_peft_model(model, SingerConfig(r=4, layers_to_transform=[1, 3])))
    assert wrapped == plain
    assert all(mine is its for mine, its in zip(wrapped.blocks, plain.blocks, strict=True))


def test_a_view_of_a_copy_belongs_to_the_copy():
    model = zoo.tiny_vit()
    other = copy.deepcopy(model)
    assert view_vit(other).blocks[0] is other.layers[0]
