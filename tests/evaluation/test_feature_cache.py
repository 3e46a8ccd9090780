"""Features on disk equal those computed anew, are safe under concurrent runs, and never come from another model."""

import copy
import json
import logging
import threading

import numpy as np
import pytest
import torch
import transformers as hf
from adapters import attach
from torch import nn

from singer_hf.evaluation.features.feature_cache import (
    CacheBudgetError,
    cache_features,
    cache_fingerprint,
    cache_if_it_fits,
    model_fingerprint,
    open_cache,
)
from singer_hf.evaluation.features.feature_loaders import ModelFeatureLoader
from singer_hf.evaluation.features.frozen_features import FrozenFeatures
from singer_hf.evaluation.heads.fit import fit_heads
from singer_hf.evaluation.heads.fit_settings import Candidate, FitSettings
from singer_hf.evaluation.heads.linear_heads import LinearHead, SegmentationHead
from singer_hf.evaluation.heads.tasks import ClassificationTask, SegmentationTask

QUIET = {"progress": False}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    return hf.ViTModel(config, add_pooling_layer=False).eval()


class Rows(torch.utils.data.Dataset):
    def __init__(self, labels):
        self.images = torch.randn(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.labels, self.reads = labels, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def loader_of(model, labels=None, **options):
    return ModelFeatureLoader(
        model, Rows(torch.arange(10) % 2 if labels is None else labels), FrozenFeatures(**options)
    )


def fingerprint(model, data="rows", transform="centre crop 32", features_fn=None):
    return cache_fingerprint(model, data, transform, features_fn or FrozenFeatures())


def batch(loader, rows):
    return next(loader.iterate([rows]))


def test_cached_features_equal_those_computed_anew(model, tmp_path):
    loader = loader_of(model, num_blocks=2)
    cached = cache_features(loader, tmp_path, fingerprint(model), batch_size=4, **QUIET)
    rows = [7, 0, 3]
    (features, labels), (expected, expected_labels) = batch(cached, rows), batch(loader, rows)
    assert features.keys() == expected.keys() == {"cls", "mean"}
    assert all(torch.allclose(features[name], expected[name], atol=1e-6) for name in features)
    assert torch.equal(labels, expected_labels)
    assert all(isinstance(array, np.memmap) for array in cached.features.values())


@pytest.mark.parametrize("dense", [False, True])
def test_a_probe_on_cached_features_equals_one_on_features_computed_anew(model, tmp_path, dense):
    labels = torch.randint(0, 2, (10, 32, 32) if dense else (10,), generator=torch.Generator().manual_seed(0))
    loader = loader_of(model, labels, dense=dense)
    task = SegmentationTask(2) if dense else ClassificationTask(2)
    weights = []
    for rows in (loader, cache_features(loader, tmp_path, fingerprint(model), **QUIET)):
        features = batch(loader, range(2))[0]
        head = SegmentationHead(features, 2) if dense else LinearHead(features, 2)
        fit_heads({"a": Candidate(head, 0.1)}, task, rows, FitSettings(epochs=3, batch_size=4), **QUIET)
        weights.append(nn.utils.parameters_to_vector(head.parameters()))
    assert torch.allclose(*weights, atol=1e-5)


def test_the_images_are_read_once(model, tmp_path):
    loader = loader_of(model)
    for _ in range(2):
        cache_features(loader, tmp_path, fingerprint(model), batch_size=5, **QUIET)
        assert loader.dataset.reads == 10 + 5  # and the first batch once more, for the shapes


@pytest.mark.parametrize(
    "change", [{"data": "others"}, {"transform": "flip"}, {"features_fn": FrozenFeatures(norm=True)}]
)
def test_other_data_transforms_or_features_make_another_cache(model, tmp_path, change):
    for parts in (fingerprint(model), fingerprint(model, **change)):
        cache_features(loader_of(model), tmp_path, parts, **QUIET)
    assert len(list(tmp_path.iterdir())) == 2


def test_any_changed_weight_or_config_changes_the_fingerprint(model):
    before = model_fingerprint(model)
    assert model_fingerprint(model) == before
    with torch.no_grad():
        model.layernorm.bias[3] += 1e-6
    changed = model_fingerprint(model)
    model.config.layer_norm_eps = 1e-3
    assert len({before, changed, model_fingerprint(model)}) == 3


def test_a_cache_of_another_model_is_refused(model, tmp_path):
    parts = fingerprint(model)
    cache_features(loader_of(model), tmp_path, parts, **QUIET)
    (folder,) = tmp_path.iterdir()
    other = {**parts, "model": "0" * 64}
    with pytest.raises(
        ValueError, match=r"`folder` must hold features of this model and data, got .* another model; dele"
    ):
        open_cache(folder, other)
    with pytest.raises(FileNotFoundError, match=r"`folder` must hold cached features, got .* without meta\.json"):
        open_cache(tmp_path, parts)


def test_a_repr_with_a_memory_address_is_refused(model):
    with pytest.raises(
        ValueError, match="the `repr` of `transform` must describe what it does, got '<object object at 0x"
    ):
        fingerprint(model, transform=object())


def test_the_size_is_said_before_the_model_runs_over_the_set(model, tmp_path, caplog):
    loader = loader_of(model)
    with caplog.at_level(logging.INFO):
        cache_features(loader, tmp_path, fingerprint(model), batch_size=2, **QUIET)
    # 10 rows of a class token and a mean patch of 16 float32 each, and an int64 label.
    assert f"Caching {10 * (2 * 16 * 4 + 8) / 2**30:.3g} GiB of features in {tmp_path}" in caplog.text


def test_a_budget_that_is_too_small_is_refused_and_leaves_nothing(model, tmp_path, caplog):
    loader = loader_of(model)
    with pytest.raises(
        CacheBudgetError, match=r"the features need 1.27e-06 GiB, more than `budget_gib`=1e-09; raise it"
    ):
        cache_features(loader, tmp_path, fingerprint(model), budget_gib=1e-9, **QUIET)
    assert list(tmp_path.iterdir()) == []
    assert cache_if_it_fits(loader, tmp_path, fingerprint(model), budget_gib=1e-9, **QUIET) is loader
    assert "more than `budget_gib`=1e-09; raise it. They are computed anew in every pass." in caplog.text


def test_an_interrupted_run_leaves_no_cache(model, tmp_path):
    loader = loader_of(model)
    loader.dataset.labels = loader.dataset.labels[:9]
    with pytest.raises(IndexError):
        cache_features(loader, tmp_path, fingerprint(model), batch_size=2, **QUIET)
    assert list(tmp_path.iterdir()) == []


def test_concurrent_runs_share_one_complete_cache(model, tmp_path):
    parts, results = fingerprint(model), []
    loaders = [loader_of(copy.deepcopy(model)) for _ in range(4)]

    def run(loader):
        results.append(batch(cache_features(loader, tmp_path, parts, batch_size=2, **QUIET), range(10))[0]["cls"])

    threads = [threading.Thread(target=run, args=(loader,)) for loader in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "meta.json").read_text())["fingerprint"] == parts
    assert len(results) == 4
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_fingerprint_covers_an_adapter_its_gate_its_place_and_its_use(model):
    def of(change=lambda model: None, **config):
        config = {"layers_to_transform": [0], "gate": "outlier", **config}
        adapted = attach(copy.deepcopy(model), **config)
        with torch.no_grad():
            change(adapted.base_model.singer_layers)
        return model_fingerprint(adapted)

    found = {
        "bare": model_fingerprint(model),
        "adapter": of(),
        "seed": of(init_seed=1),
        "place": of(layers_to_transform=[1]),
        "no gate": of(gate="none"),
        "gate": of(lambda layers: layers[0].singer_gate["default"].share.fill_(0.5)),
        "weight": of(lambda layers: layers[0].singer_up["default"].weight[0, 0].add_(1e-6)),
        "prefix": of(num_prefix_tokens=3),
        "bypassed": of(lambda layers: setattr(layers[0], "passthrough", True)),
        "disabled": of(lambda layers: layers[0].enable_adapters(False)),
    }
    assert of() == found["adapter"]
    assert found.pop("bypassed") == found["disabled"]  # both run as the bare model
    assert len(set(found.values())) == len(found)
