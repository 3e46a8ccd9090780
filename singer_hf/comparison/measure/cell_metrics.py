"""Metrics of a trained student: probes, similarity to its teacher, remaining artifacts, benchmarks."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from singer_hf.data.image_dataset import transform_images
from singer_hf.data.image_processors import image_spec
from singer_hf.data.transforms import eval_transform
from singer_hf.distillation.artifact_metrics import artifact_metrics
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.evaluation.benchmarks.benchmark_data import load_benchmark
from singer_hf.evaluation.benchmarks.catalog import get_benchmark
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.benchmarks.protocols import get_protocol
from singer_hf.evaluation.benchmarks.run import run_benchmark
from singer_hf.evaluation.benchmarks.run_settings import RunSettings
from singer_hf.evaluation.features.feature_loaders import ModelFeatureLoader, in_order
from singer_hf.evaluation.features.frozen_features import FrozenFeatures
from singer_hf.evaluation.heads.knn import knn_accuracy
from singer_hf.evaluation.heads.logistic_regression import linear_probe
from singer_hf.inspection.measure.feature_comparison import compare_features
from singer_hf.tuner.layer import SingerLayer
from singer_hf.tuner.nullspace import Spectrum, energy_shares
from singer_hf.tuner.nullspace_sources import source_gram

_BATCH = 250
_NUM_ARTIFACT_IMAGES = 250
_NAMES = {"rmse": "depth_rmse", "top1": "probe_sgd"}


def probe_metrics(model: nn.Module, processor: Any, train: Dataset, test: Dataset, k: int = 20) -> dict[str, float]:
    """Top-1 accuracy of linear probes and of kNN on the tokens after the last block, before the final norm.

    The linear probes are logistic regressions fitted to convergence (L-BFGS). Their penalty is chosen on a held-out
    part of the training images.

    Args:
        model: A vision model.
        processor: Its image processor.
        train: Labelled images to fit on.
        test: Labelled images to measure on.
        k: Number of neighbours.

    Returns:
        ``probe_cls`` (models with a class token), ``probe_mean`` (mean patch) and ``knn`` (both joined), in [0, 1].
    """
    (features, labels), (test_features, test_labels) = (_features(model, processor, rows) for rows in (train, test))
    metrics = {}
    for name, tokens in (("probe_cls", "cls"), ("probe_mean", "mean")):
        if tokens in features:
            metrics[name] = linear_probe(features[tokens], labels, test_features[tokens], test_labels)
    joined, test_joined = (torch.cat(list(part.values()), dim=1) for part in (features, test_features))
    metrics["knn"] = knn_accuracy(joined, labels, test_joined, test_labels, k=min(k, len(labels)))
    return metrics


def _features(model: nn.Module, processor: Any, rows: Dataset) -> tuple[dict[str, Tensor], Tensor]:
    transformed = transform_images(rows, eval_transform(processor), normalize=False)
    loader, batches = ModelFeatureLoader(model, transformed, FrozenFeatures()), []
    for features, labels in loader.iterate(in_order(len(rows), _BATCH)):
        batches.append(({name: tensor[:, -1].cpu() for name, tensor in features.items()}, labels))
    names = batches[0][0]
    return {name: torch.cat([part[name] for part, _ in batches]) for name in names}, torch.cat([y for _, y in batches])


def similarity_metrics(
    distiller: FeatureDistiller, student: nn.Module, teachers: Mapping[str, nn.Module], batches: list[Tensor]
) -> dict[str, float | None]:
    """Gram distance and CKA to each teacher at the last distilled block, and inheritance of the first one's outliers.

    Args:
        distiller: The trained distiller: its block pairs and its transform to the teacher's images.
        student: The student.
        teachers: Suffix of the metrics -> teacher; the distilled teacher first.
        batches: Images (B, 3, H, W) normalised for the student.
    """
    metrics: dict[str, float | None] = {}
    where = {"teacher_layers": distiller.teacher_layers[-1:], "student_layers": distiller.student_layers[-1:]}
    for suffix, teacher in teachers.items():
        (row,) = compare_features(
            student, teacher, batches, teacher_input=distiller.teacher_input, progress=False, **where
        )
        metrics |= {f"gram_{suffix}": row["gram_distance"], f"cka_{suffix}": row["cka"]}
        if suffix == next(iter(teachers)):
            metrics |= {"inheritance_iou": row["iou"], "inherited": row["inherited"]}
            metrics["outlier_share"] = row["student_share"]
    return metrics


def refinement_metrics(distiller: FeatureDistiller, batches: list[Tensor]) -> dict[str, float]:
    """Outlier ratios, leakage of the refinement, and for adapters the energy shares of Φ_up (E_prob, E_safe).

    The shares are means over the adapters. Their null-space source is the next block's MLP product, as in the paper.

    Args:
        distiller: The trained distiller.
        batches: Images (B, 3, H, W) normalised for the student.
    """
    measured = artifact_metrics(distiller, torch.cat(batches)[:_NUM_ARTIFACT_IMAGES])
    names = {
        "student_outlier_ratio": "outlier_ratio",
        "refined_outlier_ratio": "refined_outlier_ratio",
        "adapter_leakage": "leakage",
    }
    metrics = {shown: measured[name] for name, shown in names.items() if name in measured}
    # An adapter that its gate never let train is still 0 and has no shares.
    trained = {i: layer for i, layer in distiller.singer_layers.items() if any(up.weight.any() for up in _ups(layer))}
    shares = [_energy(distiller, index) for index in trained]
    if shares:
        metrics |= {name: sum(share[name] for share in shares) / len(shares) for name in shares[0]}
    return metrics


def _ups(layer: SingerLayer) -> list[nn.Module]:
    return list(layer.singer_up.values())


def _energy(distiller: FeatureDistiller, index: int) -> dict[str, float]:
    spectrum = Spectrum.of_gram(source_gram(distiller.teacher_view, index, "mlp"))
    (up,) = _ups(distiller.singer_layers[index])
    return energy_shares(up.weight, spectrum)


def benchmark_metrics(
    model: nn.Module, processor: Any, entries: tuple[dict[str, Any], ...], work_dir: Path
) -> dict[str, float]:
    """The main metric of each benchmark by its name in the tables (``mean_iou``, ``depth_rmse``, ``probe_sgd``).

    Args:
        model: A vision model.
        processor: Its image processor.
        entries: Each with the benchmark's ``name`` and optionally ``dataset_name``, ``max_train_samples``,
            ``max_test_samples`` and ``settings``, which holds fields of
            :class:`singer_hf.evaluation.benchmarks.run_settings.RunSettings`.
        work_dir: Folder for the states of unfinished heads.
    """
    evaluated = EvaluatedModel("model", model.eval(), image_spec(processor))
    metrics = {}
    for entry in entries:
        benchmark = get_benchmark(entry["name"])
        if "dataset_name" in entry:
            benchmark = replace(benchmark, train_name=entry["dataset_name"], test_name="")
        limits = {name: entry[name] for name in ("max_train_samples", "max_test_samples") if name in entry}
        data = load_benchmark(benchmark, **limits)
        settings = dict(entry.get("settings", {}))
        if "learning_rates" in settings:
            settings["learning_rates"] = tuple(settings["learning_rates"])
        protocol = get_protocol(settings.pop("protocol", benchmark.protocol))
        run = run_benchmark(
            evaluated,
            benchmark,
            data,
            RunSettings(protocol, work_dir, num_pictures=0, resamples=1, progress=False, **settings),
        )
        metrics[_NAMES.get(benchmark.metric, benchmark.metric)] = run.results[0].value
    return metrics
