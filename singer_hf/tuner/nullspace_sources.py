"""The three sources of a null space on a real model, and the leakage of a subspace into the next block."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from singer_hf.tuner.nullspace import accumulate_gram, jacobian_gram, leakage
from singer_hf.vit.features import BlockCall, FeatureCapture
from singer_hf.vit.inference import pixel_batches
from singer_hf.vit.view import ViTView

NULLSPACE_SOURCES = ("mlp", "block", "jacobian")


def linearized_mlp(view: ViTView, index: int) -> Tensor:
    """The MLP of block ``index`` without its activation as one matrix ``W_out W_in`` (D, D), float32 (W̃ᵀ, paper)."""
    fc_in, fc_out = view.mlp_weights(index)
    return fc_out.detach().float() @ fc_in.detach().float()


def source_gram(
    view: ViTView,
    index: int,
    source: str,
    calibration_images: Iterable | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Computes the Gram matrix of the next block's null-space source; for the last block, of the last block itself.

    Args:
        view: View of the teacher.
        index: 0-based index of the block whose output tokens are refined.
        source: ``"mlp"``: product of the next block's MLP weights (paper). ``"block"``: all input projections of the
            next block (queries, keys, values, MLP inputs), with the γ and the centring of the norms. ``"jacobian"``:
            E[JᵀJ], J the Jacobian of the next block's update at the prefix and patch tokens of calibration images.
        calibration_images: Batches (B, 3, H, W) normalised for the teacher; only used by ``"jacobian"``.
        generator: Random generator of the probes of ``"jacobian"``.

    Returns:
        Gram matrix (D, D), float64, on the CPU.

    Raises:
        ValueError: If the source is unknown, or ``"jacobian"`` has no calibration images.
    """
    following = view.next_block(index)
    if source == "mlp":
        return accumulate_gram([linearized_mlp(view, following)], view.hidden_size)
    if source == "block":
        return accumulate_gram(_projection_matrices(view, following), view.hidden_size)
    if source == "jacobian":
        return _mean_jacobian_gram(view, following, calibration_images, generator)
    raise ValueError(f"`nullspace_source` must be one of {NULLSPACE_SOURCES}, got {source!r}")


def record_block_calls(view: ViTView, index: int, images: Iterable) -> Iterator[BlockCall]:
    """Yields the call of block ``index`` for each batch of images, one batch at a time.

    Args:
        view: View of the model.
        index: 0-based index of the block.
        images: Batches (B, 3, H, W) normalised for the model.
    """
    capture = FeatureCapture(view, (), calls=(index,))
    weight = view.patch_embedding.weight
    for batch in pixel_batches(images):
        with torch.no_grad():
            features = capture(batch.to(weight.device, weight.dtype))
        yield features.calls[index]


def next_block_leakage(
    view: ViTView,
    index: int,
    calls: Iterable[BlockCall],
    basis: Tensor,
    relative_size: float = 0.3,
    generator: torch.Generator | None = None,
) -> float:
    """Computes the leakage of a subspace after block ``index`` into the next block, as a mean over recorded calls.

    Args:
        view: View of the model.
        index: 0-based index of the block whose output tokens are moved.
        calls: Calls of the next block, see :func:`record_block_calls`.
        basis: Orthonormal basis (D, r) of the subspace.
        relative_size: Length of the perturbation in units of the token's own norm, > 0.
        generator: Random generator of the perturbations (on the CPU).

    Returns:
        Mean of :func:`singer_hf.tuner.nullspace.leakage`, at least 0.

    Raises:
        ValueError: If there are no calls.
    """
    block = view.blocks[view.next_block(index)]
    values = [
        leakage(
            partial(call.write, block), call.hidden_states, basis, relative_size, view.num_prefix_tokens, generator
        )
        for call in calls
    ]
    if not values:
        raise ValueError("`calls` must hold at least one call, got none")
    return sum(values) / len(values)


def _projection_matrices(view: ViTView, index: int) -> Iterator[Tensor]:
    for projection in view.input_projections(index):
        for rows in projection.weight.split(view.hidden_size):  # so that no copy is larger than D x D
            yield replace(projection, weight=rows).matrix()


def _mean_jacobian_gram(
    view: ViTView, index: int, images: Iterable | None, generator: torch.Generator | None
) -> Tensor:
    gram, block = torch.zeros(view.hidden_size, view.hidden_size, dtype=torch.float64), view.blocks[index]
    num_tokens = 0
    for call in record_block_calls(view, index, () if images is None else images):
        gram += jacobian_gram(partial(call.write, block), call.hidden_states, generator=generator)
        num_tokens += call.hidden_states.shape[0] * call.hidden_states.shape[1]
    if not num_tokens:
        raise ValueError(
            '`nullspace_source="jacobian"` needs calibration images: pass `calibration_images=` to SingerConfig, '
            "batches of pixel values (B, 3, H, W) normalised for the teacher"
        )
    return gram / num_tokens
