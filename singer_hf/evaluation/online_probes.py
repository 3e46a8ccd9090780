"""Evaluator for training: nearest neighbours and a linear probe on a fixed share of labelled images."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from datasets import Dataset
from torch import Tensor, nn

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.transforms import eval_transform
from singer_hf.evaluation.features.feature_loaders import ModelFeatureLoader, in_order
from singer_hf.evaluation.features.frozen_features import FrozenFeatures
from singer_hf.evaluation.heads.knn import knn_accuracy
from singer_hf.evaluation.heads.logistic_regression import linear_probe, split_validation
from singer_hf.evaluation.label_checks import check_same_classes

Probe = Literal["knn", "linear_probe"]
PROBES: tuple[str, ...] = get_args(Probe)


class OnlineProbes:
    """A callable student -> metrics, for the trainer's ``evaluators``.

    Every call uses the same images, so that metrics of different steps can be compared. The features are those of the
    last block before the norm: class token and mean patch concatenated, or the mean patch of a model without class
    token. A call draws no random numbers, and every module of the student gets its mode back.

    The metrics are ``knn_top1`` and ``linear_probe_top1``, in [0, 1]; the trainer logs them as ``eval_knn_top1`` and
    ``eval_linear_probe_top1``, and ``metric_for_best_model="knn_top1"`` saves the best.

    Args:
        train_dataset: Labelled training images: a dataset of the `datasets` library with images and classes.
        test_dataset: Labelled test images.
        image_processor: The student's image processor.
        probes: "knn", "linear_probe" or both; the features are extracted once.
        share: Share of the labelled images of either set that is used, in (0, 1].
        max_images: Largest number of images of either set.
        image_column: Column with the images; None searches for it.
        label_column: Column with the classes; None searches for it.
        seed: Seed of the share.
        k: Number of neighbours in the vote.
        temperature: Temperature of the vote.
        batch_size: Images per forward pass.
        num_workers: Number of processes that load images.

    Raises:
        ValueError: If an argument is out of range, a set has no labels, or the classes do not fit.
    """

    def __init__(
        self,
        train_dataset: Dataset,
        test_dataset: Dataset,
        image_processor: object,
        *,
        probes: Sequence[Probe] = PROBES,
        share: float = 0.1,
        max_images: int = 5000,
        image_column: str | None = None,
        label_column: str | None = None,
        seed: int = 0,
        k: int = 20,
        temperature: float = 0.07,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        unknown = [name for name in probes if name not in PROBES]
        if unknown or not probes:
            raise ValueError(f"`probes` must be some of {PROBES}, got {list(probes)!r}")
        if not 0 < share <= 1:
            raise ValueError(f"`share` must lie in (0, 1], got {share!r}")
        if max_images < 2:
            raise ValueError(f"`max_images` must be at least 2, got {max_images!r}")
        self.probes, self.temperature, self.num_workers = tuple(probes), temperature, num_workers
        self.batch_size = batch_size
        transform = eval_transform(image_processor)
        parts = []
        for name, dataset in (("train_dataset", train_dataset), ("test_dataset", test_dataset)):
            part = _fixed_share(dataset, name, share, max_images, seed, image_column, label_column)
            parts.append((transform_images(part, transform, normalize=False), torch.as_tensor(part["label"][:])))
        (self.train_rows, self.train_labels), (self.test_rows, self.test_labels) = parts
        check_same_classes(self.train_labels, self.test_labels)
        self.k = min(k, len(self.train_labels))

    @property
    def sizes(self) -> dict[str, int]:
        """Number of test images by name of the metric."""
        return {f"{probe}_top1": len(self.test_labels) for probe in self.probes}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Computes the metrics of the student."""
        train, test = self._features(model, self.train_rows), self._features(model, self.test_rows)
        sets = (train, self.train_labels, test, self.test_labels)
        metrics = {}
        if "knn" in self.probes:
            metrics["knn_top1"] = knn_accuracy(*sets, k=self.k, temperature=self.temperature)
        if "linear_probe" in self.probes:
            metrics["linear_probe_top1"] = linear_probe(*sets)
        return metrics

    def _features(self, model: nn.Module, rows: object) -> Tensor:
        loader = ModelFeatureLoader(model, rows, FrozenFeatures(), num_workers=self.num_workers)
        batches = []
        for features, _ in loader.iterate(in_order(len(rows), self.batch_size)):
            last = [features[name][:, -1] for name in ("cls", "mean") if name in features]
            batches.append(torch.cat(last, dim=1).cpu())
        return torch.cat(batches)


def _fixed_share(
    dataset: Dataset,
    argument: str,
    share: float,
    max_images: int,
    seed: int,
    image_column: str | None,
    label_column: str | None,
) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"`{argument}` must be a dataset of the `datasets` library that is not streamed, got "
            f"{type(dataset).__name__}"
        )
    dataset = select_image_and_label(dataset, image_column=image_column, label_column=label_column)
    if "label" not in dataset.column_names:
        raise ValueError(f"`{argument}` must have labels for the evaluators, got the columns {dataset.column_names}")
    wanted = min(share, max_images / len(dataset))
    number = max(2, round(wanted * len(dataset)))
    if number >= len(dataset):
        return dataset
    # Stratified where the classes allow it, so that a small share does not lose a class.
    _, rows = split_validation(torch.as_tensor(dataset["label"][:]), number / len(dataset), seed)
    return dataset.select(rows.tolist())
