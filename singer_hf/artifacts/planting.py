"""High-norm patch tokens planted into a trained vision transformer, to have artifacts whose place and size are known.

One unused hidden unit of a block's MLP is made to fire on the least textured patches and to write one long vector:
the tokens that large models grow by themselves (Darcet et al. 2024, "Vision Transformers Need Registers"). The other
weights stay as they are. Everything here takes `nn.Linear` modules and tensors, so it serves any two-layer MLP.
"""

import torch
from torch import Tensor, nn


@torch.no_grad()
def reserve_unit(mlp_in: nn.Linear, mlp_out: nn.Linear, unit: int = -1) -> None:
    """Zeroes one hidden unit of an MLP so that artifacts can be planted in it later.

    With an activation that maps 0 to 0 (GELU, ReLU, SiLU) the unit writes nothing and gets no gradient, so it stays
    zero through any training. Call it before training.

    Args:
        mlp_in: First layer of the MLP, D -> H.
        mlp_out: Second layer, H -> D.
        unit: Index of the hidden unit, negatives allowed.

    Raises:
        ValueError: If the layers do not fit each other or ``unit`` is out of range.
    """
    unit = _checked_unit(mlp_in, mlp_out, unit)
    mlp_in.weight[unit] = 0
    mlp_out.weight[:, unit] = 0
    if mlp_in.bias is not None:
        mlp_in.bias[unit] = 0


def fit_texture_read(
    tokens: Tensor, texture: Tensor, share: float = 0.04, gain: float = 3.0, ridge: float = 1e-3
) -> tuple[Tensor, float]:
    """Fits a linear read of tokens that is positive on the least textured ones.

    Ridge regression of ``-texture`` on the tokens; scaled and centred so that a share of the tokens reads above 0 and
    their median reads ``gain``. The larger the gain, the less a GELU behind it lets through from tokens below 0.

    Args:
        tokens: What the MLP reads, after its norm: (M, D), or (B, N, D).
        texture: Texture of the same patches, (M,) or (B, N); see :func:`patch_log_variance`.
        share: Share of the tokens that reads above 0, between 0 and 0.5.
        gain: Read of the median of those tokens, above 0.
        ridge: Weight penalty relative to the mean variance of a channel.

    Returns:
        The read (D,) and its bias: ``tokens @ read + bias``.

    Raises:
        ValueError: If shapes differ, a number is out of range, or the tokens do not tell the texture apart.
    """
    if tokens.shape[:-1] != texture.shape:
        raise ValueError(
            f"`texture` must have one value per token, got {tuple(texture.shape)} for tokens {tuple(tokens.shape)}"
        )
    if not (0 < share < 0.5 and gain > 0):
        raise ValueError(f"`share` must be between 0 and 0.5 and `gain` above 0, got {share!r} and {gain!r}")
    tokens, target = tokens.detach().flatten(0, -2).double(), -texture.flatten().double()
    ceiling = target.sort().values[int((1 - share / 2) * (len(target) - 1))]
    target = target.clamp_max(ceiling)  # a few blown-out patches must not bend the fit
    centered = tokens - tokens.mean(dim=0)
    covariance = centered.T @ centered / len(tokens)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean() + 1e-12)
    read = torch.linalg.solve(covariance, centered.T @ (target - target.mean()) / len(tokens))
    return _scaled_to(tokens @ read, read, share, gain)


def random_direction(width: int, length: float, generator: torch.Generator | None = None) -> Tensor:
    """A random vector (``width``,) of the given length whose channels sum to 0, which LayerNorm does not centre away.

    Args:
        width: Number of channels D, at least 2.
        length: L2 norm of the vector, above 0.
        generator: Source of randomness on the CPU; None uses torch's own.

    Raises:
        ValueError: If a number is out of range.
    """
    if width < 2 or length <= 0:
        raise ValueError(f"`width` must be at least 2 and `length` above 0, got {width!r} and {length!r}")
    direction = torch.randn(width, generator=generator)
    direction -= direction.mean()
    return direction * (length / direction.norm())


@torch.no_grad()
def plant_artifacts(
    mlp_in: nn.Linear, mlp_out: nn.Linear, unit: int, read: Tensor, bias: float, direction: Tensor
) -> None:
    """Makes hidden unit ``unit`` of an MLP read ``read`` and write ``direction``, in place.

    A token x (after the MLP's norm) then gets ``activation(x @ read + bias) * direction`` on top of what it had.

    Args:
        mlp_in: First layer of the MLP, D -> H, with a bias.
        mlp_out: Second layer, H -> D.
        unit: Index of an unused hidden unit, negatives allowed; see :func:`reserve_unit`.
        read: Read of :func:`fit_texture_read`, (D,).
        bias: Its bias.
        direction: What is written for an activation of 1, (D,); see :func:`random_direction`.

    Raises:
        ValueError: If shapes do not fit, ``mlp_in`` has no bias, or the unit is in use.
    """
    unit = _checked_unit(mlp_in, mlp_out, unit)
    width = mlp_in.in_features
    if read.shape != (width,) or direction.shape != (width,):
        raise ValueError(
            f"`read` and `direction` must have shape ({width},), got {tuple(read.shape)} and {tuple(direction.shape)}"
        )
    if mlp_in.bias is None:
        raise ValueError("`mlp_in` must have a bias, which centres the read; got a layer without one")
    if mlp_out.weight[:, unit].any():
        raise ValueError(f"`unit` must be an unused hidden unit, got {unit}, which writes; call reserve_unit() first")
    mlp_in.weight[unit] = read.to(mlp_in.weight)
    mlp_in.bias[unit] = bias
    mlp_out.weight[:, unit] = direction.to(mlp_out.weight)


def _checked_unit(mlp_in: nn.Linear, mlp_out: nn.Linear, unit: int) -> int:
    """The unit's index from 0 on."""
    hidden = mlp_in.out_features
    if mlp_out.in_features != hidden or mlp_out.out_features != mlp_in.in_features:
        raise ValueError(
            f"`mlp_in` and `mlp_out` must be the two layers of one ungated MLP, got {mlp_in.in_features} -> {hidden} "
            f"and {mlp_out.in_features} -> {mlp_out.out_features}"
        )
    if not -hidden <= unit < hidden:
        raise ValueError(f"`unit` must be a hidden unit of the MLP, from {-hidden} to {hidden - 1}, got {unit!r}")
    return unit % hidden


def _scaled_to(scores: Tensor, read: Tensor, share: float, gain: float) -> tuple[Tensor, float]:
    ordered = scores.sort(descending=True).values
    threshold, middle = ordered[int(share * len(ordered))], ordered[int(share / 2 * len(ordered))]
    if not middle > threshold:
        raise ValueError(
            "`tokens` must tell textures apart, but their reads do not differ; give more images or an earlier block"
        )
    scale = gain / (middle - threshold)
    return (scale * read).float(), -(scale * threshold).item()
