"""A transformer block followed by the refinement of its patch tokens."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from singer_hf.tuner.gate import OutlierGate


class SingerLayer(nn.Module, BaseTunerLayer):
    """A block of the teacher whose output tokens are refined by every active adapter.

    Args:
        base_layer: The block.
        hidden_size: Width D of its tokens.
    """

    adapter_layer_names = ("singer_down", "singer_up", "singer_gate")
    other_param_names = ("num_prefix_tokens", "base_model_name")

    def __init__(self, base_layer: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hidden_size = hidden_size
        self.singer_down = nn.ModuleDict()
        self.singer_up = nn.ModuleDict()
        self.singer_gate = nn.ModuleDict()  # only of adapters with `gate="outlier"`
        self.num_prefix_tokens: dict[str, int] = {}
        self.base_model_name: dict[str, str | None] = {}
        # While True, the block returns its raw tokens; unlike `disable_adapter()` this leaves `requires_grad` alone.
        self.passthrough = False
        self._disable_adapters = False
        self._active_adapter = []
        self.merged_adapters = []

    def update_layer(
        self,
        adapter_name: str,
        down: Tensor,
        up: Tensor,
        num_prefix_tokens: int,
        inference_mode: bool = False,
        gate: str = "none",
    ) -> None:
        """Adds an adapter in float32.

        Args:
            adapter_name: Name of the adapter.
            down: Φ_down, (D, r).
            up: Φ_up, (r, D).
            num_prefix_tokens: Number of leading tokens that are not refined.
            inference_mode: Whether the adapter is frozen.
            gate: ``"none"``: all patch tokens are refined. ``"outlier"``: those that :class:`OutlierGate` opens for.
        """
        self.num_prefix_tokens[adapter_name] = num_prefix_tokens
        for modules, matrix in ((self.singer_down, down), (self.singer_up, up)):
            linear = nn.Linear(*matrix.shape, bias=False, dtype=torch.float32, device=matrix.device)
            if not linear.weight.is_meta:
                with torch.no_grad():
                    linear.weight.copy_(matrix.T)
            modules[adapter_name] = linear
        if gate == "outlier":
            self.singer_gate[adapter_name] = OutlierGate(self.hidden_size, down.device)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Computes ``F̂ = F + g ΔF``, ``ΔF = (F Φ_down) Φ_up`` on patch tokens, summed over the active adapters.

        g is 1 (paper), or the share in [0, 1] that the adapter's :class:`OutlierGate` gives to each token.

        Args:
            hidden_states: Tokens (B, P+N, D), P prefix tokens first.

        Returns:
            Refined tokens (B, P+N, D) of the same dtype; the prefix tokens are bit for bit those of the input.
        """
        refined = hidden_states
        if self.disable_adapters:
            return refined
        for name in self.active_adapters:
            if name not in self.singer_down:
                continue
            num_prefix_tokens = self.num_prefix_tokens[name]
            patches = hidden_states[:, num_prefix_tokens:]
            down, up = self.singer_down[name], self.singer_up[name]
            delta = up(down(patches.to(down.weight.dtype))).to(patches.dtype)
            if name in self.singer_gate:
                delta = delta * self.singer_gate[name](patches).to(delta.dtype)
            refined = torch.cat([refined[:, :num_prefix_tokens], refined[:, num_prefix_tokens:] + delta], dim=1)
        return refined

    def gate_shares(self, patches: Tensor) -> Tensor | None:
        """How far the gates of the active adapters refine patch tokens (B, N, D), the largest, (B, N) in [0, 1].

        None if an active adapter has no gate.
        """
        gates = [self.singer_gate[name] for name in self.active_adapters if name in self.singer_gate]
        if len(gates) < sum(name in self.singer_down for name in self.active_adapters) or not gates:
            return None
        return torch.stack([gate(patches).squeeze(-1) for gate in gates]).amax(dim=0)

    def observe(self, hidden_states: Tensor) -> None:
        """Lets the gates of the active adapters see the raw tokens (B, P+N, D) of a training batch."""
        for name in self.active_adapters:
            if name in self.singer_gate:
                self.singer_gate[name].observe(hidden_states[:, self.num_prefix_tokens[name] :])

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Yields Φ_down and Φ_up of every adapter."""
        yield from self.singer_down.parameters()
        yield from self.singer_up.parameters()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the block and refines its tokens; arguments and further outputs are those of the block."""
        output = self.base_layer(*args, **kwargs)
        if self.passthrough or self.disable_adapters or not self.active_adapters:
            return output
        if isinstance(output, tuple):  # some families also return their attention weights
            return (self.refine(output[0]), *output[1:])
        return self.refine(output)

    def merge(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: the refinement follows a residual block and cannot be absorbed by its weights.

        Raises:
            NotImplementedError: Always.
        """
        refuse_merging()

    unmerge = merge

    def cast_to_block(self, adapter_name: str) -> None:
        """Converts an adapter to the floating type of the block."""
        dtype = next(p.dtype for p in self.base_layer.parameters() if p.is_floating_point())
        for modules in (self.singer_down, self.singer_up):
            if adapter_name in modules:
                modules[adapter_name].to(dtype)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        # A block has no `.weight` of its own. No dtype: the adapter stays float32 in a half-precision teacher.
        parameter = next(base_layer.parameters(), None)
        return (None if parameter is None else parameter.device), None


def refuse_merging() -> NoReturn:
    """Says why an adapter cannot be merged.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(
        "a SiNGER adapter cannot be merged: it acts after a residual block, on patch tokens only. Use `unload()` "
        "to get the plain teacher back or `disable_adapter()` to bypass the adapter"
    )


def named_singer_layers(model: nn.Module) -> list[tuple[str, int, SingerLayer]]:
    """Returns (module path, 0-based block index, layer) of every wrapped block in a model."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, SingerLayer))
    return [(name, int(name.rpartition(".")[2]), module) for name, module in layers]


def find_singer_layers(model: nn.Module) -> dict[int, SingerLayer]:
    """Returns the wrapped blocks of a model by their 0-based index; empty for a model without SiNGER adapters."""
    return {index: layer for _, index, layer in named_singer_layers(model)}


def flowing_tokens(layers: Mapping[int, SingerLayer], outputs: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The tokens (B, P+N, D) after each block that the next block reads.

    A capture sees the block inside a :class:`SingerLayer`, whose tokens are not refined yet.

    Args:
        layers: Block index -> layer with adapters.
        outputs: Block index -> captured tokens (B, P+N, D).
    """
    running = {i for i, layer in layers.items() if not layer.passthrough}
    return {i: layers[i].refine(tokens) if i in running else tokens for i, tokens in outputs.items()}


@contextmanager
def raw_features(layers: Iterable[SingerLayer]) -> Iterator[None]:
    """Context in which the layers return the raw tokens of their blocks; adapters and gradient flags do not change."""
    layers = list(layers)
    before = [layer.passthrough for layer in layers]
    for layer in layers:
        layer.passthrough = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.passthrough = value
