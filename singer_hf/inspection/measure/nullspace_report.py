"""Null-space report of SiNGER adapters: energy of their directions, leakage, and change of the following features."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule, token_norms
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.tuner.nullspace import Spectrum, energy_shares, leakage, random_basis, relative_change
from singer_hf.tuner.nullspace_sources import source_gram
from singer_hf.vit.features import CapturedFeatures, FeatureCapture
from singer_hf.vit.inference import evaluation_mode, pixel_batches, to_float64, unwrap_peft
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


def report_nullspace(model: nn.Module, images: Iterable, *, source: str = "block", seed: int = 0) -> dict:
    """Measures spectrum, energy and leakage of the active SiNGER adapters of a model, and the changes they cause.

    Args:
        model: A ``PeftModel`` with SiNGER adapters.
        images: A few batches of pixel values (B, 3, H, W), normalised for the model, or dicts with
            ``"pixel_values"``.
        source: Null-space source of the spectrum and the energies: ``"mlp"`` (paper) or ``"block"`` (all input
            projections of the next block), see :func:`singer_hf.tuner.nullspace_sources.source_gram`.
        seed: Seed of the perturbations and of the random subspace.

    Returns:
        ``{"source": ..., "blocks": [...], "final": {...}}``. Names that end in ``_others`` leave out the raw outliers,
        which would dominate the change. Per block:

        - ``block``, ``r``, and ``singular_values`` (ascending, D)
        - ``down`` and ``up``: ``e_prob`` and ``e_safe``, shares of the energy of Φ_down and Φ_up in the r directions
          with the largest and with the smallest singular values
        - ``leakage`` of the span of Φ_up and ``leakage_random`` of a random subspace of the same rank
        - ``refinement``, the relative change of the patch tokens; ``next_output`` and ``next_write``, the relative
          change of the next block's patch tokens and of what it adds to them (None after the last block)

        ``final`` compares the whole model with and without adapters: ``features``, the relative change of the patch
        tokens after the last block, and, if the model has a head, ``logits`` and ``top1_agreement``.

    Raises:
        ValueError: If the model has no SiNGER adapter or there are no images.
    """
    layers = dict(sorted(find_singer_layers(model).items()))
    if not layers:
        raise ValueError(f"`model` must have a SiNGER adapter, got {type(model).__name__} without one")
    view = view_vit(model)
    batches = list(pixel_batches(images))
    if not batches:
        raise ValueError("`images` must hold at least one image, got none")
    weight = view.patch_embedding.weight
    batches = [batch.to(weight.device, weight.dtype) for batch in batches]
    with evaluation_mode(model):
        passes = [_raw_pass(view, layers, batch) for batch in batches]
        blocks = [_block_report(view, index, layer, passes, source, seed) for index, layer in layers.items()]
        final = _feature_changes(view, layers, batches) | _logit_changes(model, view, layers, batches)
    return {"source": source, "blocks": blocks, "final": final}


def _raw_pass(view: ViTView, layers: dict[int, nn.Module], pixel_values: Tensor) -> CapturedFeatures:
    everything = range(view.num_blocks)
    with raw_features(layers.values()):
        return FeatureCapture(view, everything, calls=everything)(pixel_values)


def _block_report(
    view: ViTView, index: int, layer: nn.Module, passes: list[CapturedFeatures], source: str, seed: int
) -> dict:
    spectrum = Spectrum.of_gram(source_gram(view, index, source))
    down, up = _factors(layer)
    r = down.shape[1]
    basis = torch.linalg.qr(up.cpu().double()).Q.float()
    random = random_basis(view.hidden_size, r, torch.Generator().manual_seed(seed))
    return {
        "block": index,
        "r": r,
        "singular_values": spectrum.singular_values.tolist(),
        "down": energy_shares(down, spectrum) if down.any() else None,
        "up": energy_shares(up, spectrum) if up.any() else None,
        "leakage": _mean_leakage(view, index, passes, basis, seed),
        "leakage_random": _mean_leakage(view, index, passes, random, seed),
        **_block_changes(view, index, layer, passes),
    }


def _factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns Φ_down (D, r) and Φ_upᵀ (D, r) of the active adapters, side by side."""
    names = [name for name in layer.active_adapters if name in layer.singer_down]
    down = torch.cat([layer.singer_down[name].weight.detach().T for name in names], dim=1)
    up = torch.cat([layer.singer_up[name].weight.detach() for name in names], dim=1)
    return down, up


def _mean_leakage(view: ViTView, index: int, passes: list[CapturedFeatures], basis: Tensor, seed: int) -> float | None:
    if index + 1 == view.num_blocks:
        return None
    generator, values = torch.Generator().manual_seed(seed), []
    for item in passes:
        call = item.calls[index + 1]
        write = partial(call.write, view.blocks[index + 1])
        values.append(
            leakage(write, call.hidden_states, basis, num_prefix_tokens=view.num_prefix_tokens, generator=generator)
        )
    return sum(values) / len(values)


def _block_changes(view: ViTView, index: int, layer: nn.Module, passes: list[CapturedFeatures]) -> dict:
    """Returns the relative changes of a block's tokens and of the next block's output by the refinement."""
    raw = [item.outputs[index] for item in passes]
    refined = [layer.refine(tokens) for tokens in raw]
    raw_patches, refined_patches = _patches(view, raw), _patches(view, refined)
    others = ~OutlierRule().mask(token_norms(raw_patches))
    changes = _changes("refinement", raw_patches, refined_patches, others)
    if index + 1 == view.num_blocks:
        names = ("next_output", "next_output_others", "next_write", "next_write_others")
        return changes | dict.fromkeys(names)
    output = _patches(view, [item.outputs[index + 1] for item in passes])
    block, calls = view.blocks[index + 1], [item.calls[index + 1] for item in passes]
    replayed = _patches(view, [call.replay(block, tokens) for call, tokens in zip(calls, refined, strict=True)])
    changes |= _changes("next_output", output, replayed, others)
    return changes | _changes("next_write", output - raw_patches, replayed - refined_patches, others)


def _patches(view: ViTView, batches: list[Tensor]) -> Tensor:
    """Returns the patch tokens (M, N, D) of all batches, float64."""
    return torch.cat([to_float64(split_tokens(tokens, view.num_prefix_tokens)[1]) for tokens in batches])


def _changes(name: str, before: Tensor, after: Tensor, others: Tensor) -> dict[str, float]:
    """Returns the relative change of all patch tokens (M, N, D), and of those that are not outliers."""
    return {
        name: float(relative_change(before, after)),
        f"{name}_others": float(relative_change(before[others], after[others])),
    }


def _feature_changes(view: ViTView, layers: dict[int, nn.Module], batches: list[Tensor]) -> dict[str, float]:
    last, raw, inline = view.num_blocks - 1, [], []
    capture = FeatureCapture(view, (last,))
    for pixel_values in batches:
        with raw_features(layers.values()):
            raw.append(capture(pixel_values).outputs[last])
        tokens = capture(pixel_values).outputs[last]
        inline.append(layers[last].refine(tokens) if last in layers else tokens)
    before, after = _patches(view, raw), _patches(view, inline)
    return _changes("features", before, after, ~OutlierRule().mask(token_norms(before)))


def _logit_changes(
    model: nn.Module, view: ViTView, layers: dict[int, nn.Module], batches: list[Tensor]
) -> dict[str, float | None]:
    with raw_features(layers.values()):
        before = _logits(model, view, batches)
    after = _logits(model, view, batches)
    if before is None:
        return {"logits": None, "top1_agreement": None}
    agreement = (before.argmax(-1) == after.argmax(-1)).double().mean()
    return {"logits": float(relative_change(before, after)), "top1_agreement": float(agreement)}


def _logits(model: nn.Module, view: ViTView, batches: list[Tensor]) -> Tensor | None:
    """Returns the logits (M, K) of a classifier, float64, or None for another model."""
    whole, logits = unwrap_peft(model), []
    if whole is view.backbone:
        return None
    for pixel_values in batches:
        output = whole(pixel_values=pixel_values, **view.forward_kwargs(pixel_values))
        logits.append(getattr(output, "logits", None))
        if not isinstance(logits[-1], Tensor) or logits[-1].ndim != 2:
            return None
    return to_float64(torch.cat(logits))
