"""Singular-defect directions: the leading left singular directions of the maps that a block adds to its tokens."""

import torch
from torch import Tensor

from singer_hf.artifacts.attention import attention_parts
from singer_hf.vit.blocks import InputProjection
from singer_hf.vit.view import ViTView

# Subspace iteration, because torch.svd_lowrank has no stopping rule and was no more accurate after as many steps, and
# because its signs differ: models planted along a leading direction would change.
_SUBSPACE, _MAX_STEPS, _TOLERANCE = 8, 30, 1e-6


def defect_directions(view: ViTView, index: int) -> dict[str, Tensor]:
    """Returns the leading left singular directions of the MLP and the attention of a block, from its weights alone.

    Both are linearised around the normalised tokens x̂: ``S₂ W_out W_in Γ₂ C x̂`` for the MLP without its activation
    and ``S₁ W_o W_v Γ₁ C x̂`` for the attention over equal values, with S the LayerScales, Γ the norms' gains and C
    their centring. Tokens that pass through such a map repeatedly align with its leading left singular direction (Wang
    et al., "SINDER: Repairing the Singular Defects of DINOv2", ECCV 2024).

    Args:
        view: View of the model.
        index: 0-based block index.

    Returns:
        ``{"mlp": (D,), "attention": (D,)}``, unit length, float32, arbitrary sign. ``"attention"`` is missing if value
        and output layers are not found; gains and centring are left out if the block is not pre-norm.
    """
    return {name: leading_left_direction(matrix) for name, matrix in linearized_parts(view, index).items()}


def linearized_parts(view: ViTView, index: int) -> dict[str, Tensor]:
    """Returns the linearised MLP and attention of a block, as in :func:`defect_directions`.

    Args:
        view: View of the model.
        index: 0-based block index.

    Returns:
        ``{"mlp": (D, D), "attention": (D, D)}``, float32; ``"attention"`` is missing if its layers are not found.
    """
    attention_input, mlp_input = _projections(view, index)
    scale_attention, scale_mlp = view.layer_scales(index)
    fc_in, fc_out = view.mlp_weights(index)
    matrices = {"mlp": _scaled(fc_out, scale_mlp) @ _with_norm(fc_in, mlp_input)}
    parts = attention_parts(view, index)
    if parts is not None:
        values = _with_norm(parts.value_matrix(), attention_input)
        matrices["attention"] = _scaled(parts.output.weight, scale_attention) @ values
    return matrices


def accumulated_direction(view: ViTView, index: int) -> Tensor:
    """Returns the leading left singular direction of all blocks up to one, linearised and multiplied.

    The product is ``(I + MLP_l)(I + A_l) ... (I + MLP_0)(I + A_0)`` with the maps of :func:`linearized_parts` (Wang et
    al., "SINDER: Repairing the Singular Defects of DINOv2", ECCV 2024). Norms of the tokens and biases are left out.
    The released code fits the linear map of a gated MLP to random inputs by least squares; here the activation is left
    out.

    Args:
        view: View of the model.
        index: 0-based index l of the last block of the product.

    Returns:
        (D,), unit length, float32, arbitrary sign.
    """
    product = torch.eye(view.hidden_size, device=view.patch_embedding.weight.device)
    for block in range(index + 1):
        matrices = linearized_parts(view, block)
        for name in ("attention", "mlp"):
            if name in matrices:
                product = product + matrices[name] @ product
        product = product / product.norm()  # only the direction counts; a deep product would overflow
    return leading_left_direction(product)


def leading_left_direction(matrix: Tensor) -> Tensor:
    """Returns the left singular vector (D,) of the largest singular value of a matrix (D, K), or zeros for zeros."""
    if not matrix.any():
        return torch.zeros_like(matrix[:, 0])
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(matrix), min(_SUBSPACE, len(matrix)), generator=generator).to(matrix)
    previous = 0.0
    for _ in range(_MAX_STEPS):
        basis, triangle = torch.linalg.qr(matrix @ (matrix.T @ basis))
        largest = float(triangle[0, 0].abs())
        if abs(largest - previous) <= _TOLERANCE * largest:
            break
        previous = largest
    # The leading direction within the subspace, exactly.
    return basis @ torch.linalg.svd(matrix.T @ basis, full_matrices=False).Vh[0]


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    weight = weight.detach().float()
    return weight if scale is None else scale.detach().float()[:, None] * weight


def _with_norm(weight: Tensor, projection: InputProjection | None) -> Tensor:
    """Returns ``weight`` with the gain and the centring of the norm before ``projection``."""
    if projection is None:
        return weight.detach().float()
    return InputProjection(projection.name, weight, projection.gain, projection.centered).matrix()


def _projections(view: ViTView, index: int) -> tuple[InputProjection | None, InputProjection | None]:
    """Returns the first input projection of the attention and the last one of the MLP."""
    try:
        projections = list(view.input_projections(index))
    except ValueError:  # post-norm blocks
        return None, None
    return projections[0], projections[-1]
