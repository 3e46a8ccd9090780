"""Linear, segmentation and depth heads."""

import pytest
import torch
from labelled import class_rows, dense_rows, first

from singer_hf.evaluation.heads.linear_heads import DepthHead, LinearHead, stacked_logits


@pytest.mark.parametrize(
    ("tokens", "blocks", "width"),
    [("cls", 1, 8), ("cls", 4, 32), ("mean", 1, 8), ("mean", 4, 32), ("cls+mean", 4, 40)],
)
def test_a_linear_head_selects_the_chosen_tokens_of_the_last_blocks(tokens, blocks, width):
    features = first(class_rows(blocks=4))
    head = LinearHead(features, 4, tokens, blocks)
    assert head.select(features).shape == (4, width)
    last = features["mean" if tokens != "cls" else "cls"][:, -1]
    assert torch.equal(head.select(features)[:, -8:], last)
    assert head(features).shape == (4, 4)


def test_stacked_heads_equal_each_head():
    features = first(class_rows())
    heads = [LinearHead(features, 4, seed=seed) for seed in range(3)]
    expected = torch.stack([head(features) for head in heads])
    assert torch.allclose(stacked_logits(heads, features), expected, atol=1e-6)


def test_the_depth_head_equals_a_convolution_over_patches_beside_the_repeated_global_token():
    features = first(dense_rows("depth"))
    head = DepthHead(features, num_bins=5)
    repeated = features["global"][..., None, None].expand(-1, -1, 4, 6)
    expected = head.conv(torch.cat([features["map"], repeated], dim=1))
    assert torch.allclose(head(features), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dist", 1), "`tokens` must be one of .*'cls\\+mean'.*, got 'dist'"),
        (("cls", 2), "`num_blocks` must be within 1 and the 1 kept blocks, got 2"),
    ],
)
def test_a_linear_head_names_bad_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearHead(first(class_rows()), 4, *arguments)


def test_a_model_without_class_token_has_no_cls_head():
    with pytest.raises(ValueError, match="`tokens` must be \"mean\" for a model without class token, got 'cls'"):
        LinearHead({"mean": torch.zeros(2, 1, 8)}, 4)
