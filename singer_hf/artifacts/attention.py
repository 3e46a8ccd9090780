"""Who gets a block's attention, read from its own queries and keys: no eager attention, no second forward pass."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.vit.view import ViTView

# Queries per image at which attention is looked at, spread evenly over the grid.
MAX_QUERIES = 32


@dataclass(frozen=True)
class AttentionParts:
    """The linear layers of one attention and which third of their output is meant (0 and 1 part if unpacked).

    Attributes:
        query: Layer that writes the queries; ``key`` and ``value`` likewise, all the same one if packed.
        key: See ``query``.
        value: See ``query``.
        output: The output projection.
        packed: Whether one layer writes queries, keys and values side by side.
        heads: Number of heads.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    packed: bool
    heads: int

    def third(self, tensor: Tensor, index: int) -> Tensor:
        """Queries (0), keys (1) or values (2) out of what their layer wrote."""
        return tensor.chunk(3, dim=-1)[index] if self.packed else tensor

    def value_matrix(self) -> Tensor:
        """Weight (D, D) of the values, float32."""
        return self.third(self.value.weight.detach().float().T, 2).T


def attention_parts(view: ViTView, index: int) -> AttentionParts | None:
    """The parts of the attention of block ``index``, or None where they do not have the usual form."""
    block = view.blocks[index]
    linears = [
        (name.rpartition(".")[2], module)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and ("attn" in name.lower() or "attention" in name.lower())
    ]
    heads = {getattr(m, name, None) for m in block.modules() for name in ("num_heads", "num_attention_heads")} - {None}
    if len(linears) < 2 or len(heads) != 1:
        return None
    *reads, (_, output) = linears
    by_letter = {"qkv" if "qkv" in name else name[0]: module for name, module in reads}
    if set(by_letter) == {"qkv"}:
        packed = by_letter["qkv"]
        return AttentionParts(packed, packed, packed, output, True, heads.pop())
    if set(by_letter) == {"q", "k", "v"}:
        return AttentionParts(by_letter["q"], by_letter["k"], by_letter["v"], output, False, heads.pop())
    return None


class AttentionReader:
    """Keeps queries and keys of every block during a forward pass, and tells what share of attention tokens receive.

    Whether ``softmax(QKᵀ/√d)`` is all there is to a block's attention (no rotary embeddings, relative bias, or norms
    on queries and keys) is tested, not guessed: :meth:`check` rebuilds one image's attention output and compares.

    Args:
        view: View of the model.

    Attributes:
        notes: Block index -> why its attention cannot be read.
    """

    def __init__(self, view: ViTView) -> None:
        self.view = view
        self.notes: dict[int, str] = {}
        self._parts: dict[int, AttentionParts] = {}
        self._kept: dict[tuple[int, str], Tensor] = {}
        self._checking = False
        self._handles = []
        for index in range(view.num_blocks):
            parts = attention_parts(view, index)
            if parts is None:
                self.notes[index] = "its query and key layers were not recognised"
            else:
                self._parts[index] = parts
                self._hook(index, parts)

    def _hook(self, index: int, parts: AttentionParts) -> None:
        for number, (name, layer) in enumerate((("q", parts.query), ("k", parts.key), ("v", parts.value))):
            self._handles.append(layer.register_forward_hook(partial(_keep, self, index, name, number)))
        self._handles.append(parts.output.register_forward_pre_hook(partial(_keep_mix, self, index)))

    @torch.no_grad()
    def check(self, pixel_values: Tensor) -> None:
        """Finds out, on one image (1, 3, H, W), in which blocks the attention is plain; notes the others."""
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
        kept = [self._kept.get((index, name)) for name in ("q", "k", "v", "mix")]
        if any(tensor is None or tensor.shape != kept[0].shape for tensor in kept):
            return False
        queries, keys, values, mix = (tensor.float() for tensor in kept)
        rebuilt = _weights(queries, keys, parts.heads) @ _heads(values, parts.heads)
        difference = rebuilt.transpose(1, 2).flatten(2) - mix
        return bool(difference.norm() <= 1e-2 * mix.norm())

    def received(self, index: int, mask: Tensor) -> Tensor | None:
        """Share of the attention of block ``index`` that patches of the last pass pay to some of the patches.

        Args:
            index: 0-based block index.
            mask: The receiving patches, bool (B, N).

        Returns:
            Mean over heads and (at most 32 evenly spread) patch queries: a share in [0, 1] per image with a
            receiver; None if the block's attention cannot be read.
        """
        if index in self.notes:
            return None
        hit = mask.any(1)
        # Without a copy where every image has some.
        rows = slice(None) if hit.all() else hit.nonzero().flatten()
        queries, keys = (self._kept[index, name][rows].float() for name in ("q", "k"))
        prefix = keys.shape[1] - mask.shape[1]
        weights = _weights(queries, keys, self._parts[index].heads)[..., prefix:]
        return (weights.flatten(1, 2) @ mask[rows].to(weights.dtype).unsqueeze(-1)).mean((1, 2))

    def clear(self) -> None:
        """Forgets the last pass."""
        self._kept.clear()

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()


def _query_places(count: int) -> Tensor:
    # Not a constant stride, which would hit the same few columns of a grid over and over.
    return torch.linspace(0, count - 1, min(count, MAX_QUERIES)).round().long()


def _heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def _weights(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    queries, keys = _heads(queries, heads), _heads(keys, heads)
    return (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1)


def _keep(reader: AttentionReader, index: int, name: str, number: int, module: nn.Module, _, output: Tensor) -> None:
    if index in reader.notes or (name == "v" and not reader._checking):
        return
    tensor = reader._parts[index].third(output, number)
    if name == "q" and not reader._checking:
        patches = tensor[:, reader.view.num_prefix_tokens :]
        tensor = patches[:, _query_places(patches.shape[1])]
    reader._kept[index, name] = tensor.contiguous()


def _keep_mix(reader: AttentionReader, index: int, module: nn.Module, args: tuple) -> None:
    if reader._checking:
        reader._kept[index, "mix"] = args[0]
