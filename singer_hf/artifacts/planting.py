"""Planting of high-norm patch tokens into the MLP of a trained vision transformer block.

Planted artifacts have known positions and norms. One unused hidden unit of a block's MLP becomes active on the least
textured patches and adds one long vector to them, which imitates the high-norm tokens of large models (Darcet et al.
2024, "Vision Transformers Need Registers"). All other weights stay unchanged. The functions take `nn.Linear` modules
and tensors, so they work for any two-layer MLP.
"""

import torch
from torch import Tensor, nn

from singer_hf.vit.inference import to_float64


@torch.no_grad()
def reserve_unit(mlp_in: nn.Linear, mlp_out: nn.Linear, unit: int = -1) -> None:
    """Zeroes one hidden unit of an MLP so that artifacts can be planted in it later.

    With an activation that maps 0 to 0 (GELU, ReLU, SiLU) the unit's output and gradient are 0, so its weights stay 0
    during training. Call it before training.

    Args:
        mlp_in: First layer of the MLP, D -> H.
        mlp_out: Second layer, H -> D.
        unit: Index of the hidden unit, negatives allowed.

    Raises:
        ValueError: If the layers are not the two layers of one MLP or ``unit`` is out of range.
    """
    unit = _checked_unit(mlp_in, mlp_out, unit)
    mlp_in.weight[unit] = 0
    mlp_out.weight[:, unit] = 0
    if mlp_in.bias is not None:
        mlp_in.bias[unit] = 0


def fit_texture_probe(
    tokens: Tensor, texture: Tensor, share: float = 0.04, gain: float = 3.0, ridge: float = 1e-3
) -> tuple[Tensor, float]:
    """Fits a linear probe of tokens that is positive on the least textured ones.

    Ridge regression of ``-texture`` on the tokens. The result is scaled and shifted so that the given share of the
    tokens scores above 0 and the median score of those tokens is ``gain``. The larger the gain, the closer to 0 is a
    GELU of the scores of all other tokens.

    Args:
        tokens: Inputs of the MLP, after its norm: (M, D) or (B, N, D).
        texture: Texture of the same patches, (M,) or (B, N); see
            :func:`singer_hf.artifacts.texture.patch_log_variance`.
        share: Share of the tokens that scores above 0, in (0, 0.5).
        gain: Median score of those tokens, > 0.
        ridge: Weight penalty relative to the mean variance of a channel, >= 0.

    Returns:
        The weight (D,) and the bias of the probe: scores are ``tokens @ weight + bias``.

    Raises:
        ValueError: If shapes differ, an argument is out of range, or the fitted scores are constant.
    """
    if tokens.shape[:-1] != texture.shape:
        raise ValueError(
            f"`texture` must have one value per token, got {tuple(texture.shape)} for tokens {tuple(tokens.shape)}"
        )
    if not (0 < share < 0.5 and gain > 0):
        raise ValueError(f"`share` must be between 0 and 0.5 and `gain` above 0, got {share!r} and {gain!r}")
    tokens, target = to_float64(tokens.detach().flatten(0, -2)), -to_float64(texture.flatten())
    ceiling = target.sort().values[int((1 - share / 2) * (len(target) - 1))]
    target = target.clamp_max(ceiling)  # limits the influence of a few patches of constant colour
    centered = tokens - tokens.mean(dim=0)
    covariance = centered.T @ centered / len(tokens)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(covariance, centered.T @ (target - target.mean()) / len(tokens))
    return _scale_probe(tokens @ weight, weight, share, gain)


def random_direction(width: int, length: float, generator: torch.Generator | None = None) -> Tensor:
    """Returns a random vector (D,) of the given length whose channels sum to 0, so that LayerNorm keeps it.

    Args:
        width: Number of channels D, at least 2.
        length: L2 norm of the vector, above 0.
        generator: Random generator on the CPU; the global one by default.

    Raises:
        ValueError: If an argument is out of range.
    """
    if width < 2 or length <= 0:
        raise ValueError(f"`width` must be at least 2 and `length` above 0, got {width!r} and {length!r}")
    direction = torch.randn(width, generator=generator)
    direction -= direction.mean()
    return direction * (length / direction.norm())


@torch.no_grad()
def plant_artifacts(
    mlp_in: nn.Linear, mlp_out: nn.Linear, unit: int, weight: Tensor, bias: float, direction: Tensor
) -> None:
    """Sets the input weight and the output direction of one hidden unit of an MLP, in place.

    Afterwards the MLP adds ``activation(x @ weight + bias) * direction`` to its output for a token x (after the norm).

    Args:
        mlp_in: First layer of the MLP, D -> H, with a bias.
        mlp_out: Second layer, H -> D.
        unit: Index of an unused hidden unit, negatives allowed; see :func:`reserve_unit`.
        weight: Weight of the probe from :func:`fit_texture_probe`, (D,).
        bias: Bias of the probe.
        direction: Vector (D,) added for an activation of 1; see :func:`random_direction`.

    Raises:
        ValueError: If shapes do not match, ``mlp_in`` has no bias, or the unit is in use.
    """
    unit = _checked_unit(mlp_in, mlp_out, unit)
    width = mlp_in.in_features
    if weight.shape != (width,) or direction.shape != (width,):
        raise ValueError(
            f"`weight` and `direction` must have shape ({width},), got {tuple(weight.shape)} and "
            f"{tuple(direction.shape)}"
        )
    if mlp_in.bias is None:
        raise ValueError("`mlp_in` must have a bias, got a layer without one; use a model whose MLPs have biases")
    if mlp_out.weight[:, unit].any():
        raise ValueError(
            f"`unit` must be an unused hidden unit, got {unit}, which is in use; call reserve_unit() first"
        )
    mlp_in.weight[unit] = weight.to(mlp_in.weight)
    mlp_in.bias[unit] = bias
    mlp_out.weight[:, unit] = direction.to(mlp_out.weight)


def _checked_unit(mlp_in: nn.Linear, mlp_out: nn.Linear, unit: int) -> int:
    """Returns the non-negative index of the unit."""
    hidden = mlp_in.out_features
    if mlp_out.in_features != hidden or mlp_out.out_features != mlp_in.in_features:
        raise ValueError(
            f"`mlp_in` and `mlp_out` must be the two layers of one ungated MLP, got {mlp_in.in_features} -> {hidden} "
            f"and {mlp_out.in_features} -> {mlp_out.out_features}"
        )
    if not -hidden <= unit < hidden:
        raise ValueError(f"`unit` must be a hidden unit of the MLP, from {-hidden} to {hidden - 1}, got {unit!r}")
    return unit % hidden


def _scale_probe(scores: Tensor, weight: Tensor, share: float, gain: float) -> tuple[Tensor, float]:
    ordered = scores.sort(descending=True).values
    threshold, middle = ordered[int(share * len(ordered))], ordered[int(share / 2 * len(ordered))]
    if not middle > threshold:
        raise ValueError(
            "`tokens` must predict the texture, but all fitted scores are equal; use more images or an earlier block"
        )
    scale = gain / (middle - threshold)
    return (scale * weight).float(), -(scale * threshold).item()
