"""Feature maps of convolutional networks, and models without any."""

import pytest
import torch
import transformers as hf
from torch import nn

from singer_hf.vit.feature_maps import feature_maps


def test_a_convolutional_network_gives_its_stem_and_stages():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model, images = hf.ResNetModel(config).eval(), torch.randn(2, 3, 32, 64)
    maps = feature_maps(model, images)
    assert [tuple(feature_map.shape) for feature_map in maps] == [(2, 8, 8, 16), (2, 8, 8, 16), (2, 16, 4, 8)]
    assert torch.equal(maps[-1], model(images).last_hidden_state)


def test_models_without_feature_maps_are_refused():
    vit = hf.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    with pytest.raises(
        ValueError, match=r"feature maps \(B, C, rows, columns\) as `hidden_states`, got \[\(1, 2, 8\)"
    ):
        feature_maps(hf.ViTModel(vit), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="`model` must return `hidden_states`, got Linear"):
        feature_maps(nn.Linear(4, 4), torch.zeros(1, 3, 4, 4))
