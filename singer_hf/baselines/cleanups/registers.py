"""A register token for a trained vision transformer, without training: it takes the outliers off the patches.

Unlike a refiner, a test-time register changes the teacher's own forward pass.
"""

from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.vit.features import capture_features, first_tensor
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


class TestTimeRegisters:
    """An additional token that takes the activations of register neurons off the patches, while installed.

    Made by :func:`install_test_time_registers`. The token is directly after the prefix tokens while a block runs;
    outside of the blocks the sequence has P+N tokens. The hooks are bound partials, so a model with them can be copied
    and pickled.

    Attributes:
        states: Block index -> the token (B, 1, D) after that block in the model's last forward pass, except for the
            last block.
        neurons: Block index -> the register neurons (K,) of its MLP.
    """

    __test__ = False  # the name is the paper's; it is no test

    def __init__(self, view: ViTView, neurons: dict[int, Tensor]) -> None:
        self.num_prefix_tokens, self.blocks = view.num_prefix_tokens, view.blocks
        self.states: dict[int, Tensor] = {}
        self.neurons = neurons
        self._units: dict[tuple[int, torch.device], Tensor] = {}
        # A block that runs out of order is a replay, and its token is not stored.
        self._next_block = 0
        self._insertions: list = []
        self._handles = [view.patch_embedding.register_forward_pre_hook(partial(_begin_pass, self))]
        for i, block in enumerate(view.blocks):
            # The first of the forward hooks, so that captures attached earlier get P+N tokens as well.
            self._handles.append(block.register_forward_hook(partial(_strip, self, i), prepend=True))
        for i in neurons:
            hook = partial(_move_activations, self, i)
            self._handles.append(view.mlp_layers(i)[1].register_forward_pre_hook(hook))

    def remove(self) -> None:
        """Removes the hooks from the model."""
        for handle in (*self._handles, *self._insertions):
            handle.remove()

    def units(self, index: int, device: torch.device) -> Tensor:
        """Returns the register neurons (K,) of block ``index``; they are copied to a device once, not in every pass.

        Args:
            index: 0-based index of the block.
            device: Device of the block.
        """
        if (index, device) not in self._units:
            self._units[index, device] = self.neurons[index].to(device)
        return self._units[index, device]

    def start_pass(self) -> None:
        """Clears the states of the last pass, and registers the insertions as the last pre-hooks of the blocks."""
        self._next_block = 0
        self.states.clear()
        for handle in self._insertions:
            handle.remove()
        self._insertions = [
            block.register_forward_pre_hook(partial(_insert, self, i), with_kwargs=True)
            for i, block in enumerate(self.blocks)
        ]

    def insert(self, index: int, hidden_states: Tensor) -> Tensor:
        """Inserts the register: input tokens (B, P+N, D) of block ``index`` -> (B, P+1+N, D).

        Raises:
            ValueError: If the last forward pass did not reach this block or had another batch size.
        """
        if index == 0:
            token = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[-1])
        else:
            token = self.states.get(index - 1)
            if token is None or len(token) != len(hidden_states):
                raise ValueError(
                    f"block {index} needs the test-time register of a forward pass on the same {len(hidden_states)} "
                    "images; run the model on them first"
                )
            self.states[index - 1] = token.detach()  # a replay must not keep the graph of the pass
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        return torch.cat([prefix, token, patches], dim=1)

    def strip(self, index: int, hidden_states: Tensor) -> Tensor:
        """Removes the register: output tokens (B, P+1+N, D) of block ``index`` -> (B, P+N, D)."""
        place = self.num_prefix_tokens
        if index == self._next_block < len(self.blocks) - 1:
            self.states[index] = hidden_states[:, place : place + 1].clone()  # a view would keep all tokens
            self._next_block += 1
        return torch.cat([hidden_states[:, :place], hidden_states[:, place + 1 :]], dim=1)


def _begin_pass(registers: TestTimeRegisters, module: nn.Module, args: tuple) -> None:
    registers.start_pass()


def _insert(registers: TestTimeRegisters, index: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple:
    if args:
        return (registers.insert(index, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": registers.insert(index, kwargs["hidden_states"])}


def _strip(registers: TestTimeRegisters, index: int, module: nn.Module, args: tuple, output: object) -> object:
    tokens = registers.strip(index, first_tensor(output))
    return (tokens, *output[1:]) if isinstance(output, tuple) else tokens


def _move_activations(registers: TestTimeRegisters, index: int, module: nn.Module, args: tuple) -> tuple:
    """Moves each unit's strongest activation over the patches, with its sign, to the register token."""
    place, units = registers.num_prefix_tokens, registers.units(index, args[0].device)
    before, _, patches = args[0][..., units].tensor_split((place, place + 1), dim=1)
    strongest = patches.gather(1, patches.abs().argmax(dim=1, keepdim=True))
    moved = torch.cat([before, strongest, torch.zeros_like(patches)], dim=1)
    return (args[0].index_copy(-1, units, moved), *args[1:])


def install_test_time_registers(model: nn.Module, neurons: dict[int, Tensor]) -> TestTimeRegisters:
    """Adds one register token to a trained model without training (Jiang et al., arXiv:2506.08010).

    One token of zeros is added to the sequence. In the MLPs of the given blocks, the activation of a register neuron
    with the largest magnitude over an image's patches moves to it, and the neuron is set to zero at all patches; class
    tokens are not changed. The paper's code appends the token; here it follows the prefix tokens, where rotary
    embeddings are not applied. Install it once. Further outputs of a block, such as attention maps, include the token.
    A block replayed on other tokens (:class:`singer_hf.vit.features.BlockCall`) gets the token of the last forward
    pass.

    Args:
        model: Any vision transformer whose blocks take any number of tokens; changed in place.
        neurons: Block index -> indices (K,) of hidden units of its MLP, as from :func:`find_register_neurons`.

    Returns:
        The installed registers; ``remove()`` restores the model.

    Raises:
        ValueError: If a block or unit is not there, or the blocks do not run with one token more: relative position
            biases and some rotary embeddings are tied to P+N tokens.
    """
    view = view_vit(model)
    registers = TestTimeRegisters(view, {i: _check_units(view, i, units) for i, units in neurons.items()})
    weight = view.patch_embedding.weight
    image = torch.zeros(1, 3, *(view.image_size or (224, 224)), device=weight.device, dtype=weight.dtype)
    try:
        with torch.no_grad():
            capture_features(model, image, [0])
    except Exception as error:
        registers.remove()
        raise ValueError(
            f"{type(view.backbone).__name__} takes no test-time register: its blocks do not run with one token more "
            f"than {view.num_prefix_tokens} prefix tokens and the patches; use another method (clip_norm, neighbor)"
        ) from error
    registers.states.clear()
    return registers


def _check_units(view: ViTView, index: int, units: Tensor) -> Tensor:
    if index not in range(view.num_blocks):
        raise ValueError(f"`neurons` must name blocks in [0, {view.num_blocks - 1}], got {index!r}")
    units, width = torch.as_tensor(units), view.mlp_layers(index)[1].in_features
    if not units.numel() or units.min() < 0 or units.max() >= width:
        raise ValueError(f"`neurons` must name units in [0, {width - 1}] for block {index}, got {units.tolist()}")
    return units.long()
