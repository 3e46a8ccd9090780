"""Parts of a transformer block: its attention, its MLP and its norms, found by structure."""

from dataclasses import dataclass

from torch import Tensor, nn

_BASE_LAYER = "base_layer"  # PEFT's name of the layer to which an adapter was added


@dataclass(frozen=True)
class InputProjection:
    """A linear layer applied to normed tokens, ``x -> weight @ (gain * center(x))`` up to the token's own scale.

    Attributes:
        name: Name of the linear layer inside its block.
        weight: Weight of the layer, (out_features, D).
        gain: Weight γ of the norm before the layer, (D,), or None for a norm without weights.
        centered: Whether the norm subtracts the mean over channels (LayerNorm does, RMSNorm does not).
    """

    name: str
    weight: Tensor
    gain: Tensor | None
    centered: bool

    def matrix(self) -> Tensor:
        """The projection of unnormed tokens as one float32 matrix (out_features, D): γ and centring are included."""
        matrix = self.weight.detach().float()
        if self.gain is not None:
            matrix = matrix * self.gain.detach().float()
        return matrix - matrix.mean(dim=1, keepdim=True) if self.centered else matrix


def is_block(module: nn.Module) -> bool:
    """Whether a module has an attention and an MLP of at least two linear layers with equal input and output width."""
    linears = mlp_linears(module) if _attention(module) is not None else []
    return len(linears) >= 2 and linears[-1][1].out_features == linears[0][1].in_features


def block_width(block: nn.Module) -> int:
    """Width D of the tokens of a block."""
    return mlp_linears(block)[-1][1].out_features


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm layer."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def owner_of(block: nn.Module, child: nn.Module) -> nn.Module:
    """The parent module of ``child`` inside a block."""
    return next(module for module in block.modules() if any(child is own for own in module.children()))


def attention_linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Linear layers of the attention as (name inside the block, layer), the output projection last."""
    inside_attention = set(map(id, _attention(block).modules()))
    return [item for item in _linears(block) if id(item[1]) in inside_attention]


def mlp_linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Linear layers outside the attention as (name inside the block, layer)."""
    inside_attention = set(map(id, _attention(block).modules()))
    return [item for item in _linears(block) if id(item[1]) not in inside_attention]


def check_plain(linears: list[tuple[str, nn.Linear]]) -> None:
    """Checks that linear layers, given as (name inside the block, layer), apply their own weights only.

    Raises:
        ValueError: If a layer is the base layer of an adapter, whose share of the weights would be missing.
    """
    adapted = [name.removesuffix(f".{_BASE_LAYER}") for name, _ in linears if name.endswith(_BASE_LAYER)]
    if adapted:
        raise ValueError(
            f"the weights of {', '.join(adapted)} cannot be read, there are adapters inside: merge them first "
            "(`model = model.merge_and_unload()`)"
        )


def _attention(block: nn.Module) -> nn.Module | None:
    for name, child in block.named_children():
        words = (name + type(child).__name__).lower()
        if ("attn" in words or "attention" in words) and _linears(child):
            return child
    return None


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Linear layers of the model itself: of a layer with an adapter of PEFT inside, such as LoRA, the base layer."""
    modules = dict(module.named_modules())
    adapted = tuple(f"{name}." for name, child in modules.items() if _is_adapted(child))
    return [
        (name, child)
        for name, child in modules.items()
        if isinstance(child, nn.Linear) and (name.endswith(_BASE_LAYER) or not name.startswith(adapted))
    ]


def _is_adapted(module: nn.Module) -> bool:
    return isinstance(getattr(module, _BASE_LAYER, None), nn.Module)
