"""Metrics at artifact places for students whose tokens are those of the planted or of the unplanted teacher."""

from copy import deepcopy

import pytest
import torch
from labelled import tiny_model
from tiny_study import make_images, save_teachers
from transformers import AutoImageProcessor, AutoModel, ResNetConfig, ResNetModel

from singer_hf.comparison.measure.artifact_place_metrics import (
    find_places,
    student_place_metrics,
    teacher_place_metrics,
)
from singer_hf.distillation.feature_distiller import FeatureDistiller

TOKENS = {"artifact_alignment", "other_alignment", "auroc_norm", "auroc_direction", "auroc_frequency"}
COSINES = {"cosine_artifacts", "cosine_elsewhere"}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    save_teachers(root)
    planted, clean = (AutoModel.from_pretrained(root / name).eval() for name in ("planted", "unplanted"))
    pixels = AutoImageProcessor.from_pretrained(root / "planted")(make_images(24, 3), return_tensors="pt")
    return planted, clean, list(pixels["pixel_values"].split(10))


def copy_distiller(model, teacher):
    """A student that is a copy of ``model``, with projectors that change nothing."""
    distiller = FeatureDistiller(deepcopy(model), deepcopy(teacher), target_norm="none")
    with torch.no_grad():
        for projector in distiller.projectors.values():
            projector.weight.copy_(torch.eye(len(projector.weight)))
            projector.bias.zero_()
    return distiller


def test_a_student_equal_to_the_unplanted_teacher(teachers):
    planted, clean, batches = teachers
    metrics = student_place_metrics(copy_distiller(clean, planted), planted, clean, batches)
    assert set(metrics) == TOKENS | COSINES | {"class_attention"}
    assert metrics["cosine_artifacts"] == pytest.approx(1, abs=1e-5)
    assert metrics["cosine_elsewhere"] == pytest.approx(1, abs=1e-5)
    reference = teacher_place_metrics(clean, planted, batches, batches)
    assert reference == {name: metrics[name] for name in TOKENS | {"class_attention"}}


def test_a_student_equal_to_the_planted_teacher(teachers):
    planted, clean, batches = teachers
    metrics = student_place_metrics(copy_distiller(planted, planted), planted, clean, batches)
    assert metrics["auroc_norm"] == pytest.approx(1)
    assert metrics["auroc_direction"] > 0.95
    assert metrics["artifact_alignment"] > 0.9 > metrics["other_alignment"]
    assert metrics["cosine_artifacts"] < 0.5 < metrics["cosine_elsewhere"]
    unplanted = teacher_place_metrics(clean, planted, batches, batches)
    assert unplanted["auroc_norm"] < 0.9
    assert unplanted["artifact_alignment"] < metrics["artifact_alignment"]


def test_the_unplanted_teacher_s_tokens_are_normalised_like_the_targets(teachers, monkeypatch):
    planted, clean, batches = teachers
    distiller = copy_distiller(clean, planted)
    monkeypatch.setattr(distiller, "normalize_targets", lambda targets: {i: -tokens for i, tokens in targets.items()})
    metrics = student_place_metrics(distiller, planted, clean, batches)
    assert metrics["cosine_artifacts"] == pytest.approx(-1, abs=1e-5)


def test_the_places_are_those_of_all_images_together(teachers):
    planted, clean, batches = teachers
    places, grid = find_places(planted, 3, batches)
    assert places.shape == (24, grid[0] * grid[1])
    assert 10 <= int(places.sum()) < places.numel() / 2
    assert find_places(planted, 3, [torch.cat(batches)])[0].equal(places)
    assert not find_places(clean, 3, batches)[0].any()


def test_what_is_left_out(teachers):
    planted, clean, batches = teachers
    distiller = copy_distiller(clean, planted)
    assert student_place_metrics(distiller, clean, clean, batches) == {}
    assert teacher_place_metrics(clean, clean, batches, batches) == {}
    assert not COSINES & set(student_place_metrics(distiller, planted, None, batches))
    narrow = tiny_model(hidden_size=8)
    assert not COSINES & set(student_place_metrics(distiller, planted, narrow, batches))


def test_a_student_without_attention(teachers):
    planted, clean, batches = teachers
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    distiller = FeatureDistiller(ResNetModel(config), deepcopy(planted), teacher_layers=[-1], image_size=(32, 32))
    batches = [torch.nn.functional.interpolate(batch, (32, 32)) for batch in batches]
    assert set(student_place_metrics(distiller, planted, clean, batches)) == TOKENS | COSINES
