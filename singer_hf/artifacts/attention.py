"""Attention that patches receive, computed from queries and keys without eager attention or a second pass."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.vit.view import ViTView

# Queries per image for which attention is computed, spread evenly over the grid.
MAX_QUERIES = 32


@dataclass(frozen=True)
class AttentionParts:
    """The linear layers of one attention module.

    Attributes:
        query: Layer that computes the queries.
        key: Layer that computes the keys; the same layer as ``query`` if packed.
        value: Layer that computes the values; the same layer as ``query`` if packed.
        output: The output projection.
        packed: Whether one layer computes queries, keys and values side by side.
        heads: Number of heads.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    packed: bool
    heads: int

    def select(self, tensor: Tensor, index: int) -> Tensor:
        """Returns the queries (0), keys (1) or values (2), (..., D), from the output of their layer.

        Args:
            tensor: Output of the layer, (..., D), or (..., 3 D) if packed.
            index: 0, 1 or 2.
        """
        return tensor.chunk(3, dim=-1)[index] if self.packed else tensor

    def value_matrix(self) -> Tensor:
        """Returns the weight (D, D) of the value layer, float32."""
        return self.select(self.value.weight.detach().float().T, 2).T


def attention_parts(view: ViTView, index: int) -> AttentionParts | None:
    """Returns the linear layers of the attention of block ``index``, or None if they cannot be recognised."""
    block = view.blocks[index]
    linears = [
        (name.rpartition(".")[2], module)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and ("attn" in name.lower() or "attention" in name.lower())
    ]
    heads = {getattr(m, name, None) for m in block.modules() for name in ("num_heads", "num_attention_heads")} - {None}
    if len(linears) < 2 or len(heads) != 1:
        return None
    *inputs, (_, output) = linears
    by_letter = {"qkv" if "qkv" in name else name[0]: module for name, module in inputs}
    if set(by_letter) == {"qkv"}:
        packed = by_letter["qkv"]
        return AttentionParts(packed, packed, packed, output, True, heads.pop())
    if set(by_letter) == {"q", "k", "v"}:
        return AttentionParts(by_letter["q"], by_letter["k"], by_letter["v"], output, False, heads.pop())
    return None


class AttentionCapture:
    """Captures queries and keys of every block, and returns the share of attention that chosen patches receive.

    Used as a context manager; hooks are on the model inside the context only, and no tensor is kept after it:

        with AttentionCapture(view) as attention:
            attention.check(pixel_values[:1])
            model(pixel_values)
            share = attention.received(index, mask)

    The shares are defined for plain ``softmax(QKᵀ/√d)`` attention, without rotary embeddings, relative position bias,
    or norms of queries and keys. :meth:`check` finds out which blocks are plain.

    Args:
        view: View of the model.

    Attributes:
        notes: Block index -> why the attention of the block is not available.
    """

    def __init__(self, view: ViTView) -> None:
        self.view = view
        parts = {index: attention_parts(view, index) for index in range(view.num_blocks)}
        self.notes = {index: "its query and key layers were not recognised" for index in parts if parts[index] is None}
        self._parts = {index: part for index, part in parts.items() if part is not None}
        self._captured: dict[tuple[int, str], Tensor] = {}
        self._checking = False
        self._handles: list = []

    def __enter__(self) -> "AttentionCapture":
        for index, parts in self._parts.items():
            for number, (name, layer) in enumerate((("q", parts.query), ("k", parts.key), ("v", parts.value))):
                hook = partial(_capture_output, self, index, name, number)
                self._handles.append(layer.register_forward_hook(hook))
            self._handles.append(parts.output.register_forward_pre_hook(partial(_capture_mix, self, index)))
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()
        while self._handles:
            self._handles.pop().remove()

    @torch.no_grad()
    def check(self, pixel_values: Tensor) -> None:
        """Finds the blocks with plain attention; the other blocks get a note and are not captured any more.

        The attention output of every block is recomputed from queries, keys and values and compared with the model's.

        Args:
            pixel_values: One image, (1, 3, H, W), normalised for the model.
        """
        self._checking = True
        try:
            self.view.backbone(pixel_values, **self.view.forward_kwargs(pixel_values))
            for index, parts in list(self._parts.items()):
                if not self._is_plain(index, parts):
                    self.notes[index] = "its attention is more than softmax(QKᵀ/√d): positions or norms act inside it"
                    del self._parts[index]
        finally:
            self._checking = False
            self.clear()

    def _is_plain(self, index: int, parts: AttentionParts) -> bool:
        captured = [self._captured.get((index, name)) for name in ("q", "k", "v", "mix")]
        if any(tensor is None or tensor.shape != captured[0].shape for tensor in captured):
            return False
        queries, keys, values, mix = (tensor.float() for tensor in captured)
        rebuilt = _weights(queries, keys, parts.heads) @ _heads(values, parts.heads)
        difference = rebuilt.transpose(1, 2).flatten(2) - mix
        return bool(difference.norm() <= 1e-2 * mix.norm())

    def received(self, index: int, mask: Tensor) -> Tensor | None:
        """Returns the share of the attention of block ``index`` that patches of the last pass pay to chosen patches.

        Args:
            index: 0-based block index.
            mask: The receiving patches, bool (B, N).

        Returns:
            For every image with a receiving patch a share in [0, 1], (B',): the mean over heads and over (at most 32
            evenly spread) patch queries. None if the block has a note.
        """
        if index in self.notes:
            return None
        weights, mask = self._patch_weights("q", index, mask)
        return (weights.flatten(1, 2) @ mask.to(weights.dtype).unsqueeze(-1)).mean((1, 2))

    def received_from_class(self, index: int, mask: Tensor) -> Tensor | None:
        """Returns the share of the class token's attention to the patches that goes to chosen patches.

        1 of 4 patches receives 1/4 if the class token prefers none. Attention to prefix tokens is left out.

        Args:
            index: 0-based block index.
            mask: The receiving patches, bool (B, N).

        Returns:
            For every image with a receiving patch a share in [0, 1], (B',): of the mean attention over heads. None if
            the block has a note or the model has no class token.
        """
        if index in self.notes or not self.view.num_class_tokens:
            return None
        weights, mask = self._patch_weights("class", index, mask)
        weights = weights.mean(1)[:, 0]
        return (weights * mask).sum(1) / weights.sum(1).clamp(min=1e-30)

    def _patch_weights(self, name: str, index: int, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attention (B', heads, queries, N) to the patches, and the mask, of images with a receiver."""
        has_receiver = mask.any(1)
        # A slice avoids a copy if every image has a receiving patch.
        rows = slice(None) if has_receiver.all() else has_receiver.nonzero().flatten()
        queries, keys = (self._captured[index, part][rows].float() for part in (name, "k"))
        prefix = keys.shape[1] - mask.shape[1]
        return _weights(queries, keys, self._parts[index].heads)[..., prefix:], mask[rows]

    def clear(self) -> None:
        """Frees the tensors of the last pass."""
        self._captured.clear()


def _query_places(count: int) -> Tensor:
    # Not a constant stride, which would select the same few columns of the grid in every row.
    return torch.linspace(0, count - 1, min(count, MAX_QUERIES)).round().long()


def _heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def _weights(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    queries, keys = _heads(queries, heads), _heads(keys, heads)
    return (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1)


def _capture_output(
    capture: AttentionCapture, index: int, name: str, number: int, module: nn.Module, _: object, output: Tensor
) -> None:
    if index in capture.notes or (name == "v" and not capture._checking):
        return
    tensor = capture._parts[index].select(output, number)
    if name == "q" and not capture._checking:
        capture._captured[index, "class"] = tensor[:, :1].contiguous()
        patches = tensor[:, capture.view.num_prefix_tokens :]
        tensor = patches[:, _query_places(patches.shape[1])]
    capture._captured[index, name] = tensor.contiguous()


def _capture_mix(capture: AttentionCapture, index: int, module: nn.Module, args: tuple) -> None:
    if capture._checking:
        capture._captured[index, "mix"] = args[0]
