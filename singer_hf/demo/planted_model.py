"""Planting of high-norm tokens into a whole vision transformer, and patch norms after each of its blocks."""

from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.artifacts.directions import defect_directions
from singer_hf.artifacts.outliers import norm_statistics, token_norms
from singer_hf.artifacts.planting import fit_texture_probe, plant_artifacts, random_direction, reserve_unit
from singer_hf.artifacts.texture import patch_log_variance
from singer_hf.tuner.nullspace import Spectrum
from singer_hf.tuner.nullspace_sources import source_gram
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

PLANTED_DIRECTIONS = ("random", "leading", "read", "unread")
_GAIN = 3.0


def reserve_units(model: nn.Module) -> None:
    """Zeroes the last hidden unit of every block's MLP, so that it can be planted after training.

    See :func:`singer_hf.artifacts.planting.reserve_unit`. Call it before training.

    Args:
        model: A vision transformer whose blocks have a plain (not gated) MLP.

    Raises:
        ValueError: If a block has a gated MLP.
    """
    view = view_vit(model)
    for index in range(view.num_blocks):
        reserve_unit(*_ungated_mlp(view, index))


def plant_in_model(
    model: nn.Module,
    pixel_values: Tensor,
    block: int,
    *,
    share: float = 0.04,
    ratio: float = 16.0,
    direction: str = "random",
    seed: int = 0,
) -> None:
    """Plants high-norm tokens on the least textured patches, in place, with the block's reserved hidden unit.

    Args:
        model: A vision transformer prepared by :func:`reserve_units`.
        pixel_values: Images (B, 3, H, W) normalised for the model, on which the unit is fitted.
        block: 0-based index of the block whose MLP adds the long vector, negatives allowed.
        share: Share of the patches on which the unit is active, in (0, 0.5).
        ratio: Norm of the added vector on the median active patch, in units of the median patch norm after the block.
        direction: Direction of the added vector. ``"random"``; ``"leading"``: leading left singular direction of the
            block's MLP; ``"read"`` and ``"unread"``: directions with the largest and with the smallest singular value
            of the next block's input projections.
        seed: Seed of the random direction.

    Raises:
        ValueError: If an argument is out of range or the model does not fit.
    """
    view = view_vit(model)
    if not -view.num_blocks <= block < view.num_blocks:
        raise ValueError(f"`block` must be a block of a model with {view.num_blocks} blocks, got {block!r}")
    if not ratio > 0:
        raise ValueError(f"`ratio` must be greater than 0, got {ratio!r}")
    block %= view.num_blocks
    mlp_in, mlp_out = _ungated_mlp(view, block)
    tokens = _patch_inputs(view, mlp_in, pixel_values)
    probe, bias = fit_texture_probe(tokens, patch_log_variance(pixel_values, view.patch_size), share, _GAIN)
    median = norm_statistics(token_norms(_patch_outputs(view, block, pixel_values)))["median"]
    added = _direction(view, block, direction, seed) * (ratio * median / _GAIN)
    scale = view.layer_scales(block)[1]
    # Divided by the LayerScale that follows, so that the tokens get the requested length and direction.
    plant_artifacts(mlp_in, mlp_out, -1, probe, bias, added if scale is None else added / scale.detach().cpu())


@torch.no_grad()
def block_norm_statistics(model: nn.Module, pixel_values: Tensor) -> list[dict[str, float]]:
    """Returns :func:`singer_hf.artifacts.outliers.norm_statistics` of the patch tokens after every block.

    Args:
        model: Any vision transformer.
        pixel_values: Images (B, 3, H, W), normalised for the model.
    """
    view = view_vit(model)
    features = capture_features(model, pixel_values, range(view.num_blocks))
    return [norm_statistics(token_norms(tokens[:, view.num_prefix_tokens :])) for tokens in features.values()]


def norm_lines(statistics: list[dict[str, float]]) -> list[str]:
    """Formats the norm statistics of every block as one line of text per block."""
    return [
        f"  block {index}: median norm {block['median']:6.2f}, p99/median {block['p99_over_median']:6.2f}, "
        f"max/median {block['max_over_median']:6.2f}, at 8 times the median or more {block['share']:.2%}"
        for index, block in enumerate(statistics)
    ]


def _ungated_mlp(view: ViTView, block: int) -> tuple[nn.Linear, nn.Linear]:
    if view.has_gated_mlp(block):
        raise ValueError(
            f"{type(view.blocks[block]).__name__} has a gated MLP, in which one hidden unit cannot be planted alone; "
            "use a model with an ungated MLP"
        )
    return view.mlp_layers(block)


def _direction(view: ViTView, block: int, name: str, seed: int) -> Tensor:
    """Returns the unit vector (D,) of a planted direction, float32, on the CPU."""
    if name == "random":
        return random_direction(view.hidden_size, 1.0, torch.Generator().manual_seed(seed))
    if name == "leading":
        return defect_directions(view, block)["mlp"].cpu()
    if name not in PLANTED_DIRECTIONS:
        raise ValueError(f"`direction` must be one of {', '.join(map(repr, PLANTED_DIRECTIONS))}, got {name!r}")
    directions = Spectrum.of_gram(source_gram(view, block, "block")).directions.float()
    return directions[:, -1] if name == "read" else _smallest_centred(directions)


def _smallest_centred(directions: Tensor) -> Tensor:
    """Returns the direction with the smallest singular value that centring by a LayerNorm keeps, centred."""
    centred = directions - directions.mean(dim=0)
    remaining = (centred.norm(dim=0) > 0.5).nonzero()[0]
    return torch.nn.functional.normalize(centred[:, remaining[0]], dim=0)


@torch.no_grad()
def _patch_outputs(view: ViTView, block: int, pixel_values: Tensor) -> Tensor:
    """Returns the patch tokens (B, N, D) after a block."""
    return capture_features(view.backbone, pixel_values, [block])[block][:, view.num_prefix_tokens :]


@torch.no_grad()
def _patch_inputs(view: ViTView, module: nn.Module, pixel_values: Tensor) -> Tensor:
    """Returns the patch tokens (B, N, D) that enter a module."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(partial(_append_input, inputs))
    try:
        view.backbone(pixel_values, **view.forward_kwargs(pixel_values))
    finally:
        handle.remove()
    return inputs[0][:, view.num_prefix_tokens :]


def _append_input(inputs: list[Tensor], module: nn.Module, args: tuple) -> None:
    inputs.append(args[0])
