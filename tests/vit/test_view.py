"""What the view of every family returns about a block: MLP, input projections, LayerScale and patch grid."""

import pytest
import torch
import zoo
from block_taps import BLOCK, block_parts, run_backbone, tap
from torch import nn
from zoo import FAMILIES, every_family

from singer_hf.vit.structure import view_vit


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
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_tokens_are_prefix_plus_grid(family, size):
    if FAMILIES[family].fixed_size and size != (32, 32):
        pytest.skip("this model takes one image size")
    view = view_vit(zoo.tiny(family))
    seen, pixel_values = tap({"block": view.blocks[BLOCK]}), zoo.images(*size)
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
def test_input_projections_are_what_the_block_computes_from_its_raw_tokens(family):
    """`weight @ norm(x)` is `matrix @ x / σ(x) + weight @ β`: γ and centring are part of the matrix."""
    model, expected = zoo.tiny(family), FAMILIES[family]
    view = view_vit(model)
    parts = block_parts(view.blocks[BLOCK])
    seen = tap(parts)
    run_backbone(model)
    projections = list(view.input_projections(BLOCK))
    assert len(projections) == expected.num_input_projections
    assert {projection.name for projection in projections} <= set(parts)
    for projection in projections:
        norm = parts["norm2" if projection.name.startswith(("mlp.", "intermediate.")) else "norm1"]
        x, normed = next(pair for key, pair in seen.items() if parts[key] is norm)
        if projection.name in seen:  # a fused EVA attention uses its weights without calling the layer
            assert seen[projection.name][0] is normed
        assert projection.weight is parts[projection.name].weight
        assert projection.centered == expected.centered
        middle = x.mean(-1, keepdim=True) if projection.centered else 0.0
        sigma = ((x - middle).square().mean(-1, keepdim=True) + norm.eps).sqrt()
        offset = 0.0 if getattr(norm, "bias", None) is None else projection.weight @ norm.bias
        torch.testing.assert_close(
            x @ projection.matrix().T / sigma + offset, normed @ projection.weight.T, atol=1e-4, rtol=1e-4
        )


@every_family
def test_layer_scales_multiply_what_a_branch_adds_to_the_skip_path(family):
    model, expected = zoo.tiny(family), FAMILIES[family]
    view = view_vit(model)
    block = view.blocks[BLOCK]
    seen = tap(block_parts(block))
    run_backbone(model)
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


def test_grid_counts_patches_like_the_patch_embedding():
    view = view_vit(zoo.tiny_vit())
    assert view.grid(32, 48) == (4, 6)
    assert view.grid(39, 40) == (4, 5)  # pixels that do not fill a patch are cut off


def test_overlapping_padded_patches_are_counted_like_the_convolution_does():
    model = zoo.tiny_vit()
    convolution = nn.Conv2d(3, zoo.HIDDEN, kernel_size=8, stride=4, padding=2)
    model.embeddings.patch_embeddings.projection = convolution
    view = view_vit(model)
    assert view.patch_size == (4, 4)
    assert view.grid(32, 48) == tuple(convolution(zoo.images(32, 48)).shape[-2:])


def test_post_norm_blocks_have_no_input_projections():
    pytest.importorskip("timm")
    model = zoo.timm_model("eva02_tiny_patch14_224", use_post_norm=True, swiglu_mlp=False)
    view = view_vit(model)
    message = (
        "EvaBlockPostNorm is not a pre-norm block with two norms, so it has no input projections; use "
        '`nullspace_source="mlp"` or "jacobian"'
    )
    with pytest.raises(ValueError, match="not a pre-norm block") as error:
        list(view.input_projections(0))
    assert str(error.value) == message
    assert view.mlp_weights(0)[0].shape == (85, 32)


@pytest.mark.parametrize("size", [(7, 32), (32, 7), (1, 1)])
def test_an_image_smaller_than_a_patch_is_refused(size):
    message = (
        rf"^images must be at least as large as a patch of 8 x 8 pixels, got {size[0]} x {size[1]}; set a larger "
    )
    with pytest.raises(ValueError, match=message):
        view_vit(zoo.tiny_vit()).grid(*size)
