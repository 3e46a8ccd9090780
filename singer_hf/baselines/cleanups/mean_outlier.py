"""Replacement of outlier patch tokens by the mean outlier token of calibration images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.norm_thresholds import NormThresholdMethod, norms_and_thresholds
from singer_hf.baselines.cleanups.refiner_method import DeviceCopy, replace_patches
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens


@dataclass(frozen=True)
class ConstantOutliers:
    """Replaces patch tokens whose norm exceeds a threshold by one and the same token.

    Args:
        num_prefix_tokens: Leading tokens that are never refined, P.
        token: The token (D,) of a :class:`DeviceCopy`. None: nothing is replaced.
        quantile: In (0, 1): an outlier is longer than this quantile of the patch norms.
        rule: The outlier rule, as in :class:`ClipNorm`. With neither of the two: ``OutlierRule()``.
        scope: Patches over which the threshold is computed, as in :class:`ClipNorm`.
    """

    num_prefix_tokens: int
    token: DeviceCopy | None = field(repr=False, compare=False)
    quantile: float | None = None
    rule: OutlierRule | None = None
    scope: str = "image"

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> same shape and dtype; prefix tokens and inliers are unchanged bit for bit."""
        if self.token is None:
            return hidden_states
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        norms, thresholds = norms_and_thresholds(patches, self.quantile, self.rule, self.scope)
        return replace_patches(prefix, patches, norms > thresholds, self.token.on(patches.device))


@dataclass(frozen=True)
class MeanOutlierMethod(NormThresholdMethod):
    """Distils features whose outliers are all the same: the mean outlier token after that block.

    After the interventions of Sun et al., "Massive Activations in Large Language Models", arXiv 2402.17762, which set
    massive activations to their mean over images: what is constant in the outliers is kept, what differs from image to
    image is removed. The targets keep long tokens. Settings of :class:`NormThresholdMethod`; with ``scope="batch"``
    the threshold of the calibration is that of a calibration batch.
    """

    name = "mean_outlier"
    title = "mean outlier removed"
    needs_images = True

    def prepare(self, teacher: nn.Module, images: Iterable[Tensor] = (), seed: int = 0) -> nn.Module:
        """Returns the teacher with its mean outlier tokens as the attribute ``mean_outliers``.

        Args:
            teacher: The plain teacher.
            images: Calibration images, batches (B, 3, H, W) normalised for the teacher.
            seed: Not used.

        Raises:
            ValueError: If no image has outliers after any block.
        """
        teacher.mean_outliers = mean_outlier_tokens(teacher, images, self)
        return teacher

    def make_refiners(
        self, teacher: nn.Module, blocks: Sequence[int], grid: tuple[int, int]
    ) -> dict[int, ConstantOutliers]:
        """Returns the refiner of each distilled block; see :meth:`RefinerMethod.make_refiners`.

        Raises:
            ValueError: If the teacher is not prepared.
        """
        tokens, prefix = getattr(teacher, "mean_outliers", None), view_vit(teacher).num_prefix_tokens
        if tokens is None:
            raise ValueError("`teacher` must be prepared by `prepare`, which finds its mean outlier tokens")
        copies = {i: DeviceCopy(tokens[i]) if i in tokens else None for i in blocks}
        return {i: ConstantOutliers(prefix, copies[i], self.quantile, self.rule, self.scope) for i in blocks}


@torch.no_grad()
def mean_outlier_tokens(
    model: nn.Module, images: Iterable[Tensor], settings: NormThresholdMethod
) -> dict[int, Tensor]:
    """Returns the mean outlier token after each block with outliers, block index -> (D,), float32.

    Args:
        model: Any vision transformer.
        images: Batches (B, 3, H, W), normalised for the model.
        settings: The settings of the threshold.

    Raises:
        ValueError: If no image has outliers after any block.
    """
    view = view_vit(model)
    capture, weight = FeatureCapture(view, range(view.num_blocks)), view.patch_embedding.weight
    sums, counts = weight.new_zeros(view.num_blocks, view.hidden_size, dtype=torch.float32), [0] * view.num_blocks
    for batch in images:
        for i, tokens in capture(batch.to(weight.device, weight.dtype)).outputs.items():
            patches = split_tokens(tokens, view.num_prefix_tokens)[1]
            norms, thresholds = norms_and_thresholds(patches, settings.quantile, settings.rule, settings.scope)
            found = patches[norms > thresholds]
            sums[i] += found.float().sum(dim=0)
            counts[i] += len(found)
    if not any(counts):
        raise ValueError(
            "`images` must have outliers after some block, got none; use more images or a lower threshold"
        )
    return {i: sums[i] / count for i, count in enumerate(counts) if count}
