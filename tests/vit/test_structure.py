"""One contract for the structural view, held by every family."""

import copy

import pytest
import torch
import transformers as hf
import zoo
from peft import get_peft_model
from torch import nn
from zoo import FAMILIES, every_family

from singer_hf import SingerConfig
from singer_hf.vit.structure import view_vit

BLOCK = 1


def _tap(modules: dict[str, nn.Module]) -> dict[str, tuple]:
    """Hooks that note (input, output) of each module under its key."""
    seen = {}

    def note(key: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            first = args[0] if args else kwargs["hidden_states"]
            seen[key] = (first, output[0] if isinstance(output, tuple) else output)

        return hook

    for key, module in modules.items():
        module.register_forward_hook(note(key), with_kwargs=True)
    return seen


def _run(model: nn.Module) -> None:
    view = view_vit(model)
    pixel_values = zoo.images()
    with torch.no_grad():
        view.backbone(pixel_values, **view.forward_kwargs(pixel_values))


def _block_parts(block: nn.Module) -> dict[str, nn.Module]:
    names = dict(block.named_modules())
    parts = {name: module for name, module in names.items() if isinstance(module, nn.Linear)}
    norms = [module for module in block.children() if "norm" in type(module).__name__.lower()]
    return {**parts, "norm1": norms[0], "norm2": norms[1], "block": block}


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
def test_the_mlps_layers_are_its_value_path(family):
    model, expected = zoo.tiny(family), FAMILIES[family]
    view = view_vit(model)
    mlp_in, mlp_out = view.mlp_layers(BLOCK)
    assert (mlp_in.in_features, mlp_out.out_features) == (zoo.HIDDEN, zoo.HIDDEN)
    assert mlp_out.in_features == expected.mlp_width
    assert mlp_in.out_features == expected.mlp_width * (2 if expected.gate == "packed" else 1)
    assert view.has_gated_mlp(BLOCK) == (expected.gate is not None)
    weight, out_weight = view.mlp_weights(BLOCK)
    assert out_weight is mlp_out.weight
    if expected.gate != "packed":
        assert weight is mlp_in.weight


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
    assert [read.name for read in view.input_projections(BLOCK)] == [
        read.name for read in real.input_projections(BLOCK)
    ]
    assert all(read.matrix().is_meta for read in view.input_projections(BLOCK))


@every_family
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_tokens_are_prefix_plus_grid(family, size):
    if FAMILIES[family].fixed_size and size != (32, 32):
        pytest.skip("this model takes one image size")
    view = view_vit(zoo.tiny(family))
    seen, pixel_values = _tap({"block": view.blocks[BLOCK]}), zoo.images(*size)
    with torch.no_grad():
        view.backbone(pixel_values, **view.forward_kwargs(pixel_values))
    rows, columns = view.grid(*size)
    assert (rows, columns) == (size[0] // 8, size[1] // 8)
    assert seen["block"][1].shape == (2, view.num_prefix_tokens + rows * columns, zoo.HIDDEN)


@every_family
def test_mlp_weights_are_the_mlp_without_its_activation(family):
    model, expected = zoo.tiny(family), FAMILIES[family]
    view = view_vit(model)
    block = view.blocks[BLOCK]
    w_in, w_out = view.mlp_weights(BLOCK)
    assert w_in.shape == (expected.mlp_width, zoo.HIDDEN)
    assert w_out.shape == (zoo.HIDDEN, expected.mlp_width)
    # A plain MLP with an identity for its activation, and a gated one whose gate is open, are both W_out W_in x + b.
    _replace_activations(block, _One() if expected.gate else nn.Identity())
    tokens = torch.randn(2, 5, zoo.HIDDEN)
    with torch.no_grad():
        change = _mlp(block, tokens) - _mlp(block, torch.zeros_like(tokens))
        torch.testing.assert_close(change, tokens @ (w_out @ w_in).T, atol=1e-5, rtol=1e-5)


class _One(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(x)


def _replace_activations(block: nn.Module, replacement: nn.Module) -> None:
    replaced = 0
    for name in list(dict(block.named_modules())):
        parent = block.get_submodule(name.rpartition(".")[0]) if name else None
        leaf = name.rpartition(".")[2]
        if leaf in ("act", "act_fn", "activation_fn", "intermediate_act_fn"):
            setattr(parent, leaf, replacement)
            replaced += 1
        elif leaf == "norm" and "mlp" in name:  # EVA's norm inside the MLP is no part of the product
            setattr(parent, leaf, nn.Identity())
    assert replaced == 1


def _mlp(block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    if hasattr(block, "mlp"):
        return block.mlp(tokens)
    return block.output.dense(block.intermediate(tokens))  # Data2Vec splits its MLP into two modules


@every_family
def test_linear_reads_are_what_the_block_computes_from_its_raw_tokens(family):
    """`weight @ norm(x)` is `matrix @ x / σ(x) + weight @ β`: γ and centring stand in the matrix."""
    model, expected = zoo.tiny(family), FAMILIES[family]
    view = view_vit(model)
    parts = _block_parts(view.blocks[BLOCK])
    seen = _tap(parts)
    _run(model)
    reads = list(view.input_projections(BLOCK))
    assert len(reads) == expected.reads_per_block
    assert {read.name for read in reads} <= set(parts)
    for read in reads:
        norm = parts["norm2" if read.name.startswith(("mlp.", "intermediate.")) else "norm1"]
        x, normed = next(pair for key, pair in seen.items() if parts[key] is norm)
        if read.name in seen:  # a fused EVA attention uses its weights without calling the layer
            assert seen[read.name][0] is normed
        assert read.weight is parts[read.name].weight
        assert read.centered == expected.centered
        middle = x.mean(-1, keepdim=True) if read.centered else 0.0
        sigma = ((x - middle).square().mean(-1, keepdim=True) + norm.eps).sqrt()
        offset = 0.0 if getattr(norm, "bias", None) is None else read.weight @ norm.bias
        torch.testing.assert_close(x @ read.matrix().T / sigma + offset, normed @ read.weight.T, atol=1e-4, rtol=1e-4)


@every_family
def test_layer_scales_stand_between_branch_and_skip_path(family):
    model, expected = zoo.tiny(family), FAMILIES[family]
    view = view_vit(model)
    block = view.blocks[BLOCK]
    seen = _tap(_block_parts(block))
    _run(model)
    (x, out), (middle, _) = seen["block"], seen["norm2"]
    scales = view.layer_scales(BLOCK)
    assert [scale is not None for scale in scales] == [expected.layer_scale] * 2
    linears = [name for name in seen if name not in ("norm1", "norm2", "block")]
    inside = [name for name in linears if "attn" in name or "attention" in name]
    for change, last, scale in (
        (middle - x, inside[-1], scales[0]),
        (out - middle, linears[-1], scales[1]),
    ):
        written = seen[last][1]
        torch.testing.assert_close(change, written if scale is None else scale * written, atol=1e-5, rtol=1e-4)


@every_family
def test_the_final_norm_is_the_one_that_reads_the_last_block(family):
    view = view_vit(model := zoo.tiny(family))
    if view.final_norm is None:
        pytest.skip("this family pools without a norm over all tokens")
    seen = _tap({"block": view.blocks[-1], "norm": view.final_norm})
    _run(model)
    tokens, read = seen["block"][1], seen["norm"][0]
    if read.dim() == 3:
        assert torch.equal(read, tokens)
    else:  # norms behind the pooling: of CLIP's class token, of the mean patch in timm's EVA
        pooled = (tokens[:, 0], tokens[:, view.num_prefix_tokens :].mean(1))
        assert any(torch.allclose(read, candidate, atol=1e-6) for candidate in pooled)


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
            lambda: hf.CLIPModel(hf.CLIPConfig(text_config=zoo._TEXT, vision_config=zoo.SIZES)),
            "vision_model.encoder.layers",
        ),
        (
            lambda: hf.SiglipModel(
                hf.SiglipConfig(
                    text_config={**zoo._TEXT, "max_position_embeddings": 8},
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


def test_grid_counts_patches_like_the_patch_embedding():
    view = view_vit(zoo.tiny_vit())
    assert view.grid(32, 48) == (4, 6)
    assert view.grid(39, 40) == (4, 5)  # a rest smaller than a patch is cut off


def test_overlapping_padded_patches_are_counted_like_the_convolution_does():
    model = zoo.tiny_vit()
    convolution = nn.Conv2d(3, zoo.HIDDEN, kernel_size=8, stride=4, padding=2)
    model.embeddings.patch_embeddings.projection = convolution
    view = view_vit(model)
    assert view.patch_size == (4, 4)
    assert view.grid(32, 48) == tuple(convolution(zoo.images(32, 48)).shape[-2:])


def test_post_norm_blocks_have_no_known_reads():
    pytest.importorskip("timm")
    model = zoo._timm("eva02_tiny_patch14_224", use_post_norm=True, swiglu_mlp=False)
    view = view_vit(model)
    message = (
        "EvaBlockPostNorm is no pre-norm block with two norms, so its linear reads are not known; "
        'use `nullspace_source="mlp"` or "jacobian"'
    )
    with pytest.raises(ValueError, match="no pre-norm block") as error:
        list(view.input_projections(0))
    assert str(error.value) == message
    assert view.mlp_weights(0)[0].shape == (85, 32)
