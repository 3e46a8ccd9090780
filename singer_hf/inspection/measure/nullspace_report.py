"""What a SiNGER adapter does to a model: where its directions lie and what of them the next block notices."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.tuner.nullspace import Spectrum, energy_shares, leakage, random_basis
from singer_hf.tuner.nullspace_sources import source_gram
from singer_hf.vit.features import CapturedFeatures, FeatureCapture
from singer_hf.vit.inference import evaluation_mode, pixel_batches, unwrap_peft
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


def report_nullspace(model: nn.Module, images: Iterable, *, source: str = "block", seed: int = 0) -> dict:
    """Measures the active SiNGER adapters of a model: spectrum, energy, leakage, and the change they make downstream.

    Args:
        model: A ``PeftModel`` with SiNGER adapters.
        images: A few batches of pixel values (B, 3, H, W), normalised for the model, or dicts that hold them.
        source: What counts as reading for the spectrum and the energies: ``"mlp"`` (paper) or ``"block"`` (every
            linear layer of the next block), see :func:`singer_hf.tuner.nullspace_sources.source_gram`.
        seed: Seed of the perturbations for the leakage and of the random subspace beside it.

    Returns:
        ``{"source": ..., "blocks": [...], "final": {...}}``. Per block: ``block``, ``r``, ``singular_values``
        (ascending, D), ``down`` and ``up`` with ``e_prob`` and ``e_safe`` (shares of the energy of Φ_down and Φ_up in
        the r most- and least-read directions), ``leakage`` of the span of Φ_up and ``leakage_random`` of a random
        subspace of the same rank, ``refinement`` ``‖F̂ - F‖ / ‖F‖``, and ``next_output`` and ``next_write``, the
        relative change of the next block's patch tokens and of what it adds (None behind the last block). ``final``
        compares the whole model with the adapters inline and without: ``features``, the relative change of the patch
        tokens after the last block, and, where the model has a head, ``logits`` and ``top1_agreement``. What ends in
        ``_others`` leaves out the raw outliers, which would otherwise outweigh all other patches.

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
        calls = [_raw_pass(model, view, batch) for batch in batches]
        blocks = [_block_report(view, index, layer, calls, source, seed) for index, layer in layers.items()]
        final = _feature_changes(model, view, layers, batches) | _logit_changes(model, view, batches)
    return {"source": source, "blocks": blocks, "final": final}


def _raw_pass(model: nn.Module, view: ViTView, pixel_values: Tensor) -> CapturedFeatures:
    everything = range(view.num_blocks)
    with raw_features(find_singer_layers(model).values()):
        return FeatureCapture(view, everything, calls=everything)(pixel_values)


def _block_report(
    view: ViTView, index: int, layer: nn.Module, passes: list[CapturedFeatures], source: str, seed: int
) -> dict:
    spectrum = Spectrum.of_gram(source_gram(view, index, source))
    down, up = _factors(layer)
    r = down.shape[1]
    basis = torch.linalg.qr(up.double().cpu()).Q.float()
    generator = torch.Generator().manual_seed(seed)
    random = random_basis(view.hidden_size, r, generator)
    prefix, changes = view.num_prefix_tokens, [_changes(view, index, layer, item) for item in passes]
    return {
        "block": index,
        "r": r,
        "singular_values": spectrum.singular_values.tolist(),
        "down": energy_shares(down, spectrum) if down.any() else None,
        "up": energy_shares(up, spectrum) if up.any() else None,
        "leakage": _mean_leakage(view, index, passes, basis, prefix, seed),
        "leakage_random": _mean_leakage(view, index, passes, random, prefix, seed),
        **{name: _root_ratio([change[name] for change in changes]) for name in changes[0]},
    }


def _factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Φ_down (D, r) and Φ_upᵀ (D, r) of the active adapters, side by side."""
    names = [name for name in layer.active_adapters if name in layer.singer_down]
    down = torch.cat([layer.singer_down[name].weight.detach().T for name in names], dim=1)
    up = torch.cat([layer.singer_up[name].weight.detach() for name in names], dim=1)
    return down, up


def _mean_leakage(
    view: ViTView, index: int, passes: list[CapturedFeatures], basis: Tensor, prefix: int, seed: int
) -> float | None:
    if index + 1 == view.num_blocks:
        return None
    generator, values = torch.Generator().manual_seed(seed), []
    for item in passes:
        call = item.calls[index + 1]
        write = partial(call.write, view.blocks[index + 1])
        values.append(leakage(write, call.hidden_states, basis, num_prefix_tokens=prefix, generator=generator))
    return sum(values) / len(values)


_Squares = tuple[float, float]


def _changes(view: ViTView, index: int, layer: nn.Module, item: CapturedFeatures) -> dict[str, _Squares | None]:
    """Squared lengths (of the change, of the original) of the tokens and of what the next block makes of them."""
    raw, prefix = item.outputs[index], view.num_prefix_tokens
    refined, others = layer.refine(raw), _not_outliers(raw, prefix)
    changes = _both("refinement", raw, refined, prefix, others)
    if index + 1 == view.num_blocks:
        names = ("next_output", "next_output_others", "next_write", "next_write_others")
        return changes | dict.fromkeys(names)
    output = item.outputs[index + 1]
    replayed = item.calls[index + 1].replay(view.blocks[index + 1], refined)
    changes |= _both("next_output", output, replayed, prefix, others)
    return changes | _both("next_write", output - raw, replayed - refined, prefix, others)


def _not_outliers(tokens: Tensor, prefix: int) -> Tensor:
    return ~OutlierRule().mask(split_tokens(tokens, prefix)[1].float().norm(dim=-1))


def _both(name: str, before: Tensor, after: Tensor, prefix: int, others: Tensor) -> dict[str, _Squares]:
    """The squared lengths over all patches, and over those that are no outliers."""
    before, after = (split_tokens(tokens, prefix)[1].double() for tokens in (before, after))
    change, original = (after - before).square().sum(-1), before.square().sum(-1)
    return {
        name: (float(change.sum()), float(original.sum())),
        f"{name}_others": (float(change[others].sum()), float(original[others].sum())),
    }


def _root_ratio(pairs: list[_Squares | None]) -> float | None:
    if None in pairs:
        return None
    change, original = (sum(values) for values in zip(*pairs, strict=True))
    return (change / max(original, 1e-30)) ** 0.5


def _feature_changes(
    model: nn.Module, view: ViTView, layers: dict[int, nn.Module], batches: list[Tensor]
) -> dict[str, float | None]:
    last, changes = view.num_blocks - 1, []
    capture, prefix = FeatureCapture(view, (last,)), view.num_prefix_tokens
    for pixel_values in batches:
        with raw_features(find_singer_layers(model).values()):
            raw = capture(pixel_values).outputs[last]
        inline = capture(pixel_values).outputs[last]
        inline = layers[last].refine(inline) if last in layers else inline
        changes.append(_both("features", raw, inline, prefix, _not_outliers(raw, prefix)))
    return {name: _root_ratio([change[name] for change in changes]) for name in changes[0]}


def _logit_changes(model: nn.Module, view: ViTView, batches: list[Tensor]) -> dict[str, float | None]:
    squares, agreeing, images = [], 0, 0
    for pixel_values in batches:
        with raw_features(find_singer_layers(model).values()):
            before = _logits(model, view, pixel_values)
        if before is None:
            return {"logits": None, "top1_agreement": None}
        after = _logits(model, view, pixel_values)
        squares.append((float((after - before).double().square().sum()), float(before.double().square().sum())))
        agreeing, images = agreeing + int((before.argmax(-1) == after.argmax(-1)).sum()), images + len(before)
    return {"logits": _root_ratio(squares), "top1_agreement": agreeing / images}


def _logits(model: nn.Module, view: ViTView, pixel_values: Tensor) -> Tensor | None:
    whole = unwrap_peft(model)
    if whole is view.backbone:
        return None
    output = whole(pixel_values=pixel_values, **view.forward_kwargs(pixel_values))
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) and logits.ndim == 2 else None
