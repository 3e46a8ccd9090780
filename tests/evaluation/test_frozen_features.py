"""Frozen features of transformers and convolutional networks, and their loader."""

import pytest
import torch
import transformers as hf
from labelled import first
from torch import nn

from singer_hf.evaluation.features.feature_loaders import ModelFeatureLoader
from singer_hf.evaluation.features.frozen_features import FrozenFeatures
from singer_hf.evaluation.heads.fit import fit_heads
from singer_hf.evaluation.heads.fit_settings import Candidate, FitSettings
from singer_hf.evaluation.heads.linear_heads import LinearHead
from singer_hf.evaluation.heads.tasks import ClassificationTask

QUIET = {"progress": False}


def vit(**sizes):
    torch.manual_seed(0)
    config = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
        **sizes,
    }
    return hf.ViTModel(hf.ViTConfig(**config), add_pooling_layer=False).eval()


def test_frozen_features_are_the_tokens_before_or_after_the_final_norm():
    model, images = vit(), torch.randn(2, 3, 32, 48)
    output = model(images, interpolate_pos_encoding=True).last_hidden_state
    normed = FrozenFeatures(norm=True)(model, images)
    assert torch.allclose(normed["cls"][:, 0], output[:, 0], atol=1e-5)
    assert torch.allclose(normed["mean"][:, 0], output[:, 1:].mean(1), atol=1e-5)
    raw = FrozenFeatures(num_blocks=4, dense=True)(model, images)
    assert raw["map"].shape == (2, 64, 4, 6)
    assert torch.allclose(
        model.layernorm(raw["map"][:, -16:].permute(0, 2, 3, 1)).flatten(1, 2), output[:, 1:], atol=1e-5
    )
    assert torch.allclose(model.layernorm(raw["global"][:, -16:]), output[:, 0], atol=1e-5)


def test_a_convolutional_network_gives_its_last_feature_map():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    model, images = hf.ResNetForImageClassification(config).eval(), torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        last = model.resnet(images).last_hidden_state
    assert torch.equal(FrozenFeatures(dense=True)(model, images)["map"], last)
    features = FrozenFeatures()(model, images)
    assert features.keys() == {"mean"}
    assert torch.allclose(features["mean"][:, 0], last.mean((-2, -1)))
    with pytest.raises(ValueError, match="`num_blocks` must be 1 for a model that is no vision transformer, got 4"):
        FrozenFeatures(num_blocks=4)(model, images)


def test_models_without_tokens_or_maps_and_too_many_blocks_are_refused():
    with pytest.raises(ValueError, match=r"`model` must be a vision transformer or return feature maps .* got Linear"):
        FrozenFeatures()(nn.Linear(4, 4), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="`num_blocks` must be at most the model's 4 blocks, got 5"):
        FrozenFeatures(num_blocks=5)(vit(), torch.zeros(1, 3, 32, 32))


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows=12, size=(32, 32), labels=None):
        rng = torch.Generator().manual_seed(0)
        self.images = torch.randn(rows, 3, *size, generator=rng)
        self.labels = torch.arange(rows) % 2 if labels is None else labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def test_results_do_not_depend_on_the_number_of_workers():
    model, task = vit(), ClassificationTask(2)
    metrics = []
    for workers in (0, 2):
        loader = ModelFeatureLoader(model, Rows(), FrozenFeatures(), num_workers=workers)
        head = fit_heads(
            {"a": Candidate(LinearHead(first(loader), 2), 0.1)}, task, loader, FitSettings(2, 4), **QUIET
        ).head
        metrics.append(head.linear.weight)
    assert torch.equal(*metrics)


def test_the_model_is_frozen_and_left_as_it_was():
    model = vit().train()
    model.layers[0].eval()
    before = [p.clone() for p in model.parameters()]
    loader = ModelFeatureLoader(model, Rows(), FrozenFeatures())
    fit_heads(
        {"a": Candidate(LinearHead(first(loader), 2), 0.1)}, ClassificationTask(2), loader, FitSettings(1, 4), **QUIET
    )
    assert model.training
    assert not model.layers[0].training
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))


def test_masks_of_another_size_than_the_image_are_refused():
    loader = ModelFeatureLoader(vit(), Rows(labels=torch.zeros(12, 16, 16)), FrozenFeatures(dense=True))
    with pytest.raises(
        ValueError, match=r"of the size of its image \(height, width\) \(32, 32\), got \(16, 16\); resize"
    ):
        first(loader)
