"""Which hidden units of a vision transformer write its outliers, and after which block the outliers appear."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.norm_thresholds import SigmaRule
from singer_hf.baselines.cleanups.registers import install_test_time_registers
from singer_hf.vit.block_indices import resolve_layers
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

MAX_NEURONS = 64
# Outliers count as gone if at most this share of them is left, and as there from this share of the largest number on.
_LEFT, _ONSET = 0.01, 0.5


@torch.no_grad()
def find_outlier_block(model: nn.Module, images: Iterable[Tensor], rule: OutlierRule | SigmaRule | None = None) -> int:
    """Finds the block after which a model's outliers appear.

    This is the first block after which there are at least half as many outliers as after the block with the most. A
    few long tokens after earlier blocks, which every rule finds by chance, do not count.

    Args:
        model: Any vision transformer.
        images: Batches (B, 3, H, W), normalised for the model.
        rule: The outlier rule; None: ``OutlierRule()``.

    Raises:
        ValueError: If no image has outliers after any block.
    """
    view, rule = view_vit(model), rule or OutlierRule()
    counts = [0] * view.num_blocks
    for norms in _patch_norms(view, images, range(view.num_blocks)):
        for i, of_block in norms.items():
            counts[i] += int(rule.mask(of_block).sum())
    if not any(counts):
        raise ValueError(
            "`images` must have outliers after some block, got none; use more images or a lower threshold"
        )
    return next(i for i, count in enumerate(counts) if count >= _ONSET * max(counts))


@torch.no_grad()
def find_register_neurons(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    outlier_block: int,
    num_neurons: int | None,
    rule: OutlierRule | SigmaRule | None = None,
) -> dict[int, Tensor]:
    """Finds the hidden MLP units that are most active at outliers (register neurons, arXiv:2506.08010).

    A unit's score is the mean magnitude of its activation at the outliers of an image, averaged over the images with
    outliers. The units of blocks 0 to ``outlier_block`` are ranked together.

    Args:
        model: Any vision transformer, without test-time registers.
        images: Batches (B, 3, H, W), normalised for the model.
        outlier_block: Block after which the outliers are detected, negatives allowed: the first with all of them.
        num_neurons: Number of units, > 0. None: it is doubled, from 1 to at most ``MAX_NEURONS``, until with a
            test-time register at most 1 % of the outliers exceed the thresholds of the plain model.
        rule: The outlier rule; None: ``OutlierRule()``.

    Returns:
        Block index -> indices (K,) of its units, ascending, int64 on the CPU; only blocks with such units.

    Raises:
        ValueError: If a number is out of range or no image has outliers, or the model takes no test-time register.
    """
    view, rule = view_vit(model), rule or OutlierRule()
    [last] = resolve_layers("outlier_block", [outlier_block], view.num_blocks)
    width = view.mlp_layers(last)[1].in_features
    if num_neurons is not None and not 0 < num_neurons <= (last + 1) * width:
        raise ValueError(f"`num_neurons` must lie in [1, {(last + 1) * width}], got {num_neurons!r}")
    images = list(images)
    scores = _score_units(view, images, last, rule).flatten()
    ranked = scores.topk(min(num_neurons or MAX_NEURONS, len(scores))).indices.cpu()
    if num_neurons is None:
        ranked = ranked[: _sufficient_number(model, images, ranked, last, rule)]
    return _by_block(ranked, width)


def _sufficient_number(
    model: nn.Module, images: Sequence[Tensor], ranked: Tensor, last: int, rule: OutlierRule | SigmaRule
) -> int:
    """The smallest number tried that leaves no outliers after block ``last``, else the one that leaves the fewest."""
    view = view_vit(model)
    width = view.mlp_layers(last)[1].in_features
    plain = [norms[last] for norms in _patch_norms(view, images, [last])]
    # The plain model's thresholds: a rule that is relative finds some among any tokens.
    thresholds = [rule.thresholds(norms)[0] for norms in plain]
    number, left = 1, {0: _count_above(plain, thresholds)}
    while number <= len(ranked):
        registers = install_test_time_registers(model, _by_block(ranked[:number], width))
        try:
            norms = [norms[last] for norms in _patch_norms(view, images, [last])]
        finally:
            registers.remove()
        left[number] = _count_above(norms, thresholds)
        if left[number] <= _LEFT * left[0]:
            return number
        number *= 2
    total = left.pop(0)
    best = min(left, key=left.get)
    warnings.warn(
        f"a test-time register of {best} neurons leaves {left[best]} of {total} outliers after block {last}; more "
        "neurons leave no fewer",
        stacklevel=2,
    )
    return best


def _count_above(norms: Sequence[Tensor], thresholds: Sequence[Tensor]) -> int:
    return sum(int((n > t).sum()) for n, t in zip(norms, thresholds, strict=True))


def _by_block(units: Tensor, width: int) -> dict[int, Tensor]:
    units = units.sort().values
    blocks = units // width
    return {int(i): units[blocks == i] % width for i in blocks.unique()}


def _patch_norms(view: ViTView, images: Iterable[Tensor], blocks: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Norms (B, N) of the patch tokens after the blocks, batch by batch, float32."""
    capture, weight = FeatureCapture(view, blocks), view.patch_embedding.weight
    for batch in images:
        outputs = capture(batch.to(weight.device, weight.dtype)).outputs
        yield {i: tokens[:, view.num_prefix_tokens :].float().norm(dim=-1) for i, tokens in outputs.items()}


def _score_units(view: ViTView, images: Iterable[Tensor], last: int, rule: OutlierRule | SigmaRule) -> Tensor:
    """Scores (last + 1, H) of the units of blocks 0 to ``last``, summed over the images."""
    activations: dict[int, Tensor] = {}
    weight = view.patch_embedding.weight
    handles = [
        view.mlp_layers(i)[1].register_forward_pre_hook(partial(_keep_activations, activations, i))
        for i in range(last + 1)
    ]
    scores, found = torch.zeros(last + 1, view.mlp_layers(last)[1].in_features, device=weight.device), 0
    try:
        for norms in _patch_norms(view, images, [last]):
            outliers = rule.mask(norms[last])
            found += int(outliers.any(dim=1).sum())
            shares = outliers / outliers.sum(dim=1, keepdim=True).clamp(min=1)
            for i, score in enumerate(scores):
                magnitudes = activations[i][:, view.num_prefix_tokens :].abs().float()
                score += torch.einsum("bn,bnh->h", shares, magnitudes)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(
            f"`images` must have outliers after block {last}, got none; use more images or a lower threshold"
        )
    return scores


def _keep_activations(activations: dict[int, Tensor], index: int, module: nn.Module, args: tuple) -> None:
    activations[index] = args[0]
