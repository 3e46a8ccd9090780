"""Measurements on a device without float64 (mps): everything in double precision happens on the CPU."""

import dataclasses

import pytest
import torch
import zoo
from adapters import attach
from no_float64 import on_device
from torch import Tensor

from singer_hf.artifacts.planting import fit_texture_probe
from singer_hf.artifacts.similarity import GramDistance, LinearCka, OutlierOverlap, PatchCosine
from singer_hf.evaluation.metrics import ClassificationMetric, DepthMetric, KnnMetric, SegmentationMetric
from singer_hf.inspection.measure.audit import audit, outlier_summary
from singer_hf.inspection.measure.nullspace_report import report_nullspace
from singer_hf.tuner.nullspace import Spectrum, accumulate_gram, energy_shares, reference_basis


@pytest.fixture(autouse=True)
def device_without_float64(monkeypatch):
    """Has `to_float64` treat the tensors of this machine as those of such a device."""
    monkeypatch.setattr("singer_hf.vit.inference._WITHOUT_FLOAT64", ("cpu",))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_simulated_device_refuses_float64():
    for convert in (
        lambda x: x.double(),
        lambda x: x.to("cpu", torch.float64),
        lambda x: torch.add(x, x.cpu().double()),
    ):
        with pytest.raises(TypeError, match="float64"):
            convert(on_device(random(3)))
    assert on_device(random(3)).cpu().double().dtype == torch.float64


def test_an_audit_of_a_model_with_an_adapter():
    model = attach(zoo.tiny_vit())
    expected = audit(model, [zoo.images()])
    assert dataclasses.asdict(audit(model, [on_device(zoo.images())])) == dataclasses.asdict(expected)
    assert outlier_summary(model, on_device(zoo.images())) == outlier_summary(model, zoo.images())


@pytest.mark.parametrize("family", ["vit", "vit_classifier"])
def test_a_report_on_the_null_space(family):
    model = attach(zoo.tiny(family))
    assert report_nullspace(model, [on_device(zoo.images())]) == report_nullspace(model, [zoo.images()])


@pytest.mark.parametrize("metric", [LinearCka, GramDistance, PatchCosine])
def test_similarity_of_tokens(metric):
    pair = {"predictions": random(2, 8, 4), "references": random(2, 8, 4, seed=1)}
    on = {name: on_device(tokens) for name, tokens in pair.items()}
    assert metric().compute(**on) == metric().compute(**pair)


def test_overlap_of_outliers():
    pair = {"predictions": random(2, 8).abs(), "references": random(2, 8, seed=1).abs()}
    on = {name: on_device(norms) for name, norms in pair.items()}
    assert OutlierOverlap().compute(**on) == OutlierOverlap().compute(**pair)


@pytest.mark.parametrize(
    ("metric", "predictions", "references"),
    [
        (ClassificationMetric(), random(6, 3), torch.arange(6) % 3),
        (KnnMetric(), torch.arange(6) % 3, torch.arange(6) % 2),
        (SegmentationMetric(3), torch.arange(12).view(1, 3, 4) % 3, torch.arange(12).view(1, 3, 4) % 2),
        (DepthMetric(), random(1, 3, 4).abs(), random(1, 3, 4, seed=1).abs()),
    ],
    ids=["classification", "knn", "segmentation", "depth"],
)
def test_metrics_of_the_benchmarks(metric, predictions, references):
    expected = metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=on_device(predictions), references=on_device(references)) == expected


def test_null_spaces():
    weight = random(6, 4)
    gram, expected = accumulate_gram([on_device(weight)], 4), accumulate_gram([weight], 4)
    assert torch.equal(gram, expected)
    spectrum = Spectrum.of_gram(on_device(gram.float()))
    assert energy_shares(on_device(weight.T), spectrum, 2) == energy_shares(weight.T, spectrum, 2)
    assert torch.equal(reference_basis(on_device(weight), 2, 100.0), reference_basis(weight, 2, 100.0))


def test_planting():
    tokens, texture = random(4, 9, 6), random(4, 9, seed=1)
    read, bias = fit_texture_probe(on_device(tokens), on_device(texture))
    expected, expected_bias = fit_texture_probe(tokens, texture)
    torch.testing.assert_close(read, expected)
    assert bias == pytest.approx(expected_bias)
