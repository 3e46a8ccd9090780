"""What reads the tokens a block writes: the three sources of a null space, on a real model."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from singer_hf.tuner.nullspace import accumulate_gram, jacobian_gram, leakage
from singer_hf.vit.features import BlockCall, FeatureCapture
from singer_hf.vit.view import ViTView

NULLSPACE_SOURCES = ("mlp", "block", "jacobian")


def linearized_mlp(view: ViTView, index: int) -> Tensor:
    """The MLP of a block without its activation as one matrix ``W_out W_in`` (D, D), float32 (paper, W̃ᵀ)."""
    fc_in, fc_out = view.mlp_weights(index)
    return fc_out.detach().float() @ fc_in.detach().float()


def source_gram(
    view: ViTView,
    index: int,
    source: str,
    calibration_images: Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Gram matrix (D, D) of what reads the tokens behind block ``index``: the next block, for the last block itself.

    Args:
        view: View of the teacher.
        index: 0-based block index.
        source: ``"mlp"``: the product of the reader's MLP weights (paper). ``"block"``: every linear layer through
            which the reader sees its tokens (queries, keys, values, MLP inputs), γ and centring of the norms included.
            ``"jacobian"``: E[JᵀJ] of all that the non-linear reader writes, over the patch and prefix tokens of
            calibration images.
        calibration_images: Batches (B, 3, H, W) normalised for the teacher; for ``"jacobian"`` only.
        generator: Source of the random probes.

    Raises:
        ValueError: If the source is unknown, or ``"jacobian"`` is asked for without calibration images.
    """
    reader = view.next_block(index)
    if source == "mlp":
        return accumulate_gram([linearized_mlp(view, reader)], view.hidden_size)
    if source == "block":
        return accumulate_gram(_read_matrices(view, reader), view.hidden_size)
    if source == "jacobian":
        return _calibrated_gram(view, reader, calibration_images, generator)
    raise ValueError(f"`nullspace_source` must be one of {NULLSPACE_SOURCES}, got {source!r}")


def record_block_calls(view: ViTView, index: int, images: Iterable[Tensor]) -> Iterator[BlockCall]:
    """The call of block ``index`` for each batch of images (B, 3, H, W), one at a time."""
    capture = FeatureCapture(view, (), calls=(index,))
    weight = view.patch_embedding.weight
    for batch in images:
        with torch.no_grad():
            features = capture(batch.to(weight.device, weight.dtype))
        yield features.calls[index]


def next_block_leakage(
    view: ViTView,
    index: int,
    images: Iterable[Tensor],
    basis: Tensor,
    relative_size: float = 0.3,
    generator: torch.Generator | None = None,
) -> float:
    """True leakage (see :func:`singer_hf.tuner.nullspace.leakage`) into the reader of block ``index``, mean over batches."""
    reader = view.next_block(index)
    block = view.blocks[reader]
    values = [
        leakage(
            partial(call.write, block), call.hidden_states, basis, relative_size, view.num_prefix_tokens, generator
        )
        for call in record_block_calls(view, reader, images)
    ]
    if not values:
        raise ValueError("`images` must hold at least one batch")
    return sum(values) / len(values)


def _read_matrices(view: ViTView, reader: int) -> Iterator[Tensor]:
    for read in view.input_projections(reader):
        for rows in read.weight.split(view.hidden_size):  # so that no copy is larger than D x D
            yield replace(read, weight=rows).matrix()


def _calibrated_gram(
    view: ViTView, reader: int, images: Iterable[Tensor] | None, generator: torch.Generator | None
) -> Tensor:
    gram, block = torch.zeros(view.hidden_size, view.hidden_size, dtype=torch.float64), view.blocks[reader]
    batches = [images] if isinstance(images, Tensor) else images or []
    seen = 0
    for call in record_block_calls(view, reader, batches):
        gram += jacobian_gram(partial(call.write, block), call.hidden_states, generator=generator)
        seen += call.hidden_states.shape[0] * call.hidden_states.shape[1]
    if not seen:
        raise ValueError(
            '`nullspace_source="jacobian"` needs calibration images: pass `calibration_images=` to SingerConfig, '
            "batches of pixel values (B, 3, H, W) normalised for the teacher"
        )
    return gram / seen
