"""A model under evaluation: its features under a protocol, and their cache."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from singer_hf.data.image_processors import ImageSpec
from singer_hf.evaluation.benchmarks.protocols import EvaluationProtocol
from singer_hf.evaluation.benchmarks.run_settings import RunSettings
from singer_hf.evaluation.features.feature_cache import cache_fingerprint, cache_if_it_fits, model_fingerprint
from singer_hf.evaluation.features.feature_loaders import FeatureLoader, ModelFeatureLoader
from singer_hf.evaluation.features.frozen_features import FrozenFeatures
from singer_hf.evaluation.heads.linear_heads import Tokens
from singer_hf.vit.structure import view_vit

HeadInputs = tuple[tuple[Tokens, int], ...]


@dataclass(frozen=True)
class EvaluatedModel:
    """A frozen model that is evaluated.

    Attributes:
        name: Name in tables.
        model: The model, in evaluation mode.
        spec: Size, normalisation and interpolation of its image processor.
        adapter: Name of the SiNGER adapter that refines it; empty without one.
        source: Hash of its Hub id or folder; empty for a module without one.
    """

    name: str
    model: nn.Module
    spec: ImageSpec
    adapter: str = ""
    source: str = ""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Hash of class, config and weights."""
        return model_fingerprint(self.model)

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def linear_features(self, protocol: EvaluationProtocol) -> tuple[FrozenFeatures, HeadInputs, list[str]]:
        """Returns the features for linear heads and kNN: those of the protocol, as far as the model has them.

        Returns:
            The features, the inputs of the heads (tokens, number of last blocks), and notes on what the model lacks.
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
        """Returns the features for segmentation and depth heads, and notes on what the model lacks."""
        norm, notes = self._norm(protocol)
        return FrozenFeatures(norm=norm, dense=True), notes

    def _norm(self, protocol: EvaluationProtocol) -> tuple[bool, list[str]]:
        try:
            has_norm = view_vit(self.model).final_norm is not None
        except ValueError:
            has_norm = False
        return protocol.norm and has_norm, ["no final norm"] if protocol.norm and not has_norm else []


def cached_loader(
    evaluated: EvaluatedModel, loader: ModelFeatureLoader, data: str, transform: object, settings: RunSettings
) -> FeatureLoader:
    """Returns the features of ``loader`` from the run's cache, or ``loader`` itself if they exceed the budget.

    Args:
        evaluated: The model of the features.
        loader: Features computed by the model.
        data: Fingerprint of the images.
        transform: Transform of the images; its ``repr`` describes it completely.
        settings: Settings of the run, which give folder and budget.
    """
    return cache_if_it_fits(
        loader,
        settings.work_dir / "features",
        cache_fingerprint(evaluated.model, data, transform, loader.features_fn),
        budget_gib=settings.cache_budget_gib,
        progress=settings.progress,
    )
