"""High-norm tokens planted into a whole model: where they stand, how long they are and along which direction."""

from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.artifacts.directions import defect_directions
from singer_hf.artifacts.outliers import norm_statistics
from singer_hf.artifacts.planting import fit_texture_read, plant_artifacts, random_direction, reserve_unit
from singer_hf.artifacts.texture import patch_log_variance
from singer_hf.tuner.nullspace import Spectrum
from singer_hf.tuner.nullspace_sources import source_gram
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

PLANTED_DIRECTIONS = ("random", "leading", "read", "unread")
_GAIN = 3.0


def reserve_units(model: nn.Module) -> None:
    """Keeps the last hidden unit of every block's MLP out of use, before training; see `reserve_unit`.

    Raises:
        ValueError: If a block has a gated MLP.
    """
    view = view_vit(model)
    for index in range(view.num_blocks):
        reserve_unit(*_plain_mlp(view, index))


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
        model: A vision transformer with square patches whose blocks have a plain MLP; see :func:`reserve_units`.
        pixel_values: Images (B, 3, H, W) normalised for the model, on which the unit is fitted.
        block: 0-based block whose MLP writes the tokens, negatives allowed.
        share: Share of the patches on which the unit fires, in (0, 0.5).
        ratio: Norm of what the unit writes on the median of them, in units of the median norm behind the block.
        direction: Along what it writes: ``"random"``; ``"leading"``: what the block's MLP writes most strongly;
            ``"read"`` and ``"unread"``: what the linear reads of the next block take up most and least.
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
    mlp_in, mlp_out = _plain_mlp(view, block)
    tokens = _patch_inputs(view, mlp_in, pixel_values)
    read, bias = fit_texture_read(tokens, patch_log_variance(pixel_values, view.patch_size[0]), share, _GAIN)
    median = norm_statistics(_patches_behind(view, block, pixel_values))["median"]
    written = _direction(view, block, direction, seed) * (ratio * median / _GAIN)
    scale = view.layer_scales(block)[1]
    # What LayerScale will make of it is undone, so that the tokens get the length and the direction asked for.
    plant_artifacts(mlp_in, mlp_out, -1, read, bias, written if scale is None else written / scale.detach().cpu())


@torch.no_grad()
def block_norm_statistics(model: nn.Module, pixel_values: Tensor) -> list[dict[str, float]]:
    """:func:`singer_hf.artifacts.outliers.norm_statistics` behind every block, for images (B, 3, H, W) normalised for the model."""
    view = view_vit(model)
    features = capture_features(model, pixel_values, range(view.num_blocks))
    return [norm_statistics(tokens[:, view.num_prefix_tokens :]) for tokens in features.values()]


def norm_lines(figures: list[dict[str, float]]) -> list[str]:
    """A line of text for each block's figures."""
    return [
        f"  block {index}: median norm {block['median']:6.2f}, p99/median {block['p99_ratio']:6.2f}, "
        f"max/median {block['max_ratio']:6.2f}, at 8 times the median or more {block['share']:.2%}"
        for index, block in enumerate(figures)
    ]


def _plain_mlp(view: ViTView, block: int) -> tuple[nn.Linear, nn.Linear]:
    if view.has_gated_mlp(block):
        raise ValueError(
            f"{type(view.blocks[block]).__name__} has a gated MLP, in which a unit does not write by itself; take a "
            "model with a plain one"
        )
    return view.mlp_layers(block)


def _direction(view: ViTView, block: int, name: str, seed: int) -> Tensor:
    """Unit vector (D,), float32, on the CPU."""
    if name == "random":
        return random_direction(view.hidden_size, 1.0, torch.Generator().manual_seed(seed))
    if name == "leading":
        return defect_directions(view, block)["mlp"].cpu()
    if name not in PLANTED_DIRECTIONS:
        raise ValueError(f"`direction` must be one of {', '.join(map(repr, PLANTED_DIRECTIONS))}, got {name!r}")
    directions = Spectrum.of_gram(source_gram(view, block, "block")).directions.float()
    return directions[:, -1] if name == "read" else _least_read(directions)


def _least_read(directions: Tensor) -> Tensor:
    """The least-read direction that a LayerNorm does not centre away, with what it would centre away taken out."""
    centred = directions - directions.mean(dim=0)
    kept = (centred.norm(dim=0) > 0.5).nonzero()[0]
    return torch.nn.functional.normalize(centred[:, kept[0]], dim=0)


@torch.no_grad()
def _patches_behind(view: ViTView, block: int, pixel_values: Tensor) -> Tensor:
    return capture_features(view.backbone, pixel_values, [block])[block][:, view.num_prefix_tokens :]


@torch.no_grad()
def _patch_inputs(view: ViTView, module: nn.Module, pixel_values: Tensor) -> Tensor:
    """Patch tokens (B, N, D) that go into a module."""
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(partial(_keep, kept))
    try:
        view.backbone(pixel_values, **view.forward_kwargs(pixel_values))
    finally:
        handle.remove()
    return kept[0][:, view.num_prefix_tokens :]


def _keep(kept: list[Tensor], module: nn.Module, args: tuple) -> None:
    kept.append(args[0])
