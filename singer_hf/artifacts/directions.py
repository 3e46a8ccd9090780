"""The direction a block writes most strongly: where high-norm tokens point (the singular-defect direction)."""

import torch
from torch import Tensor

from singer_hf.artifacts.attention import attention_parts
from singer_hf.vit.blocks import InputProjection
from singer_hf.vit.view import ViTView

# Enough for a leading singular value a few per cent above the ninth; closer ones make no defect direction.
_SUBSPACE, _MAX_STEPS, _TOLERANCE = 8, 30, 1e-6


def defect_directions(view: ViTView, index: int) -> dict[str, Tensor]:
    """Leading left singular directions of what block ``index`` writes, from its weights alone.

    The writes are linearised around the normed tokens x̂: ``S₂ W_out W_in Γ₂ C x̂`` for the MLP without its activation
    and ``S₁ W_o W_v Γ₁ C x̂`` for the attention that averages equal values, with S the LayerScales, Γ the norms' gains
    and C their centring. Tokens that pass through such a write again and again line up with its leading left singular
    direction (Wang et al., "SINDER: Repairing the Singular Defects of DINOv2", ECCV 2024).

    Args:
        view: View of the model.
        index: 0-based block index.

    Returns:
        ``{"mlp": (D,), "attention": (D,)}``, unit length, float32, sign without meaning; without ``"attention"`` where
        value and output layers are not found, and without gains and centring where the block is not pre-norm.
    """
    attention_read, mlp_read = _reads(view, index)
    scale_attention, scale_mlp = view.layer_scales(index)
    fc_in, fc_out = view.mlp_weights(index)
    directions = {"mlp": leading_left_direction(_scaled(fc_out, scale_mlp) @ _normed(fc_in, mlp_read))}
    parts = attention_parts(view, index)
    if parts is not None:
        write = _scaled(parts.output.weight, scale_attention) @ _normed(parts.value_matrix(), attention_read)
        directions["attention"] = leading_left_direction(write)
    return directions


def leading_left_direction(matrix: Tensor) -> Tensor:
    """Unit left singular vector (D,) of the largest singular value of ``matrix`` (D, K); 0 if it is 0 altogether."""
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
    # Within the subspace the leading direction is exact.
    return basis @ torch.linalg.svd(matrix.T @ basis, full_matrices=False).Vh[0]


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    weight = weight.detach().float()
    return weight if scale is None else scale.detach().float()[:, None] * weight


def _normed(weight: Tensor, read: InputProjection | None) -> Tensor:
    """``weight`` as a read of the tokens behind the same norm as ``read``."""
    if read is None:
        return weight.detach().float()
    return InputProjection(read.name, weight, read.gain, read.centered).matrix()


def _reads(view: ViTView, index: int) -> tuple[InputProjection | None, InputProjection | None]:
    try:
        reads = list(view.input_projections(index))
    except ValueError:  # post-norm blocks
        return None, None
    return reads[0], reads[-1]
