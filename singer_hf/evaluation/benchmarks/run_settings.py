"""What is evaluated, and how far a run departs from its protocol."""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from singer_hf.data.image_processors import ImageSpec
from singer_hf.evaluation.benchmarks.protocols import EvaluationProtocol
from singer_hf.evaluation.features.feature_cache import cache_fingerprint, cache_if_it_fits, model_fingerprint
from singer_hf.evaluation.features.feature_loaders import FeatureLoader, ModelFeatureLoader
from singer_hf.evaluation.features.frozen_features import FrozenFeatures
from singer_hf.evaluation.heads.fit import FitSettings
from singer_hf.evaluation.heads.linear_heads import Tokens
from singer_hf.vit.structure import view_vit

# Fields of RunSettings that change what is measured.
_CHANGES = ("num_epochs", "batch_size", "learning_rates", "image_size", "resize_size", "augment", "depth_temperature")


@dataclass(frozen=True)
class EvaluatedModel:
    """A frozen model under evaluation.

    Attributes:
        name: What it is called in tables.
        model: The model, in evaluation mode.
        spec: Size, normalisation and interpolation of its image processor.
    """

    name: str
    model: nn.Module
    spec: ImageSpec

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        return model_fingerprint(self.model)

    @property
    def num_parameters(self) -> int:
        """Number of its parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def linear_features(
        self, protocol: EvaluationProtocol
    ) -> tuple[FrozenFeatures, tuple[tuple[Tokens, int], ...], list[str]]:
        """What the linear heads read, as the protocol says where the model has it; else what was done instead.

        Returns:
            The features, the heads' inputs (tokens, last blocks), and notes on what the model lacks.
        """
        try:
            view = view_vit(self.model)
        except ValueError:
            return FrozenFeatures(), (("mean", 1),), ["no transformer: mean of the last feature map"]
        norm, notes = self._norm(protocol)
        choices = tuple(choice for choice in protocol.choices if choice[1] <= view.num_blocks)
        if len(choices) < len(protocol.choices):
            notes.append(f"only {view.num_blocks} blocks")
        if not view.num_class_tokens:
            choices = tuple(dict.fromkeys(("mean", blocks) for _, blocks in choices))
            notes.append("no class token: mean patch")
        return FrozenFeatures(max(blocks for _, blocks in choices), norm=norm), choices, notes

    def dense_features(self, protocol: EvaluationProtocol) -> tuple[FrozenFeatures, list[str]]:
        """What the segmentation and depth heads read, and notes on what the model lacks."""
        norm, notes = self._norm(protocol)
        return FrozenFeatures(norm=norm, dense=True), notes

    def _norm(self, protocol: EvaluationProtocol) -> tuple[bool, list[str]]:
        try:
            has_norm = view_vit(self.model).final_norm is not None
        except ValueError:
            has_norm = False
        return protocol.norm and has_norm, ["no final norm"] if protocol.norm and not has_norm else []


@dataclass(frozen=True)
class RunSettings:
    """How a benchmark is run; whatever is None is as the protocol says.

    Attributes:
        protocol: The protocol.
        work_dir: Folder for cached features, states of unfinished fits and heads that other benchmarks reuse.
        seed: Seed of subsets, order, views and bootstrap.
        num_epochs: Passes over the training set.
        batch_size: Images per step.
        learning_rates: Peak rates that are swept.
        image_size: Height and width in pixels; None takes what the model's image processor gives.
        resize_size: Length of the shorter side before the crop, or before the sliding window, in pixels.
        augment: Whether the heads are trained on new random views in every epoch, which rules out cached features.
        depth_temperature: Temperature at which the bins of depth are averaged.
        cache_budget_gib: Largest size of one cache of features.
        num_workers: Processes that read images.
        num_pictures: Test images shown with truth and prediction.
        resamples: Test sets drawn for the intervals.
        progress: Whether to show progress bars.
    """

    protocol: EvaluationProtocol
    work_dir: Path
    seed: int = 0
    num_epochs: int | None = None
    batch_size: int | None = None
    learning_rates: tuple[float, ...] | None = None
    image_size: int | None = None
    resize_size: int | None = None
    augment: bool = False
    depth_temperature: float | None = None
    cache_budget_gib: float = 16.0
    num_workers: int = 0
    num_pictures: int = 4
    resamples: int = 1000
    progress: bool = True

    def changes(self) -> dict[str, object]:
        """What departs from the protocol, by name."""
        default = {item.name: item.default for item in fields(self) if item.name in _CHANGES}
        return {name: getattr(self, name) for name in _CHANGES if getattr(self, name) != default[name]}

    def fit_settings(self, dense: bool) -> FitSettings:
        """How the heads are trained."""
        base = self.protocol.dense if dense else self.protocol.classification
        return replace(
            base,
            epochs=self.num_epochs or base.epochs,
            batch_size=self.batch_size or base.batch_size,
            seed=self.seed,
        )

    def rates(self, dense: bool) -> tuple[float, ...]:
        """Peak rates for the batch size in use; those given by hand are not scaled."""
        if self.learning_rates is not None:
            return self.learning_rates
        scale = 1.0
        if not dense and self.protocol.rates_batch_size is not None:
            scale = self.fit_settings(dense).batch_size / self.protocol.rates_batch_size
        return tuple(rate * scale for rate in self.protocol.learning_rates)

    def size(self, spec: ImageSpec) -> tuple[int, int]:
        """(height, width) of what the model is shown."""
        return spec.size if self.image_size is None else (self.image_size, self.image_size)

    def resize(self, size: tuple[int, int]) -> int:
        """Shorter side before a centre crop to ``size``, in the protocol's proportion."""
        return self.resize_size or round(max(size) * self.protocol.resize_size / self.protocol.image_size)

    def state_file(self, *parts: object) -> Path:
        """File for the state of the fit that ``parts`` describe."""
        return self.work_dir / "states" / f"{digest(self.protocol, self.changes(), self.seed, *parts)}.pt"


def digest(*parts: object) -> str:
    """Short hash of the ``repr`` of all parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def cached_loader(
    evaluated: EvaluatedModel, loader: ModelFeatureLoader, data: str, transform: object, settings: RunSettings
) -> FeatureLoader:
    """The features of ``loader`` from the run's cache, or ``loader`` itself where they do not fit the budget.

    Args:
        evaluated: The model they are read from.
        loader: Where they come from.
        data: Fingerprint of the images.
        transform: What is done to the images; its ``repr`` says all of it.
        settings: Settings of the run, for folder and budget.
    """
    return cache_if_it_fits(
        loader,
        settings.work_dir / "features",
        cache_fingerprint(evaluated.model, data, transform, loader.features_fn),
        budget_gib=settings.cache_budget_gib,
        progress=settings.progress,
    )
