"""Capture of block outputs and block calls in one forward pass."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView


class _StopForwardError(Exception):
    """Ends a forward pass after the last block that is needed."""


@dataclass
class BlockCall:
    """The recorded call of one block: its tokens and its other arguments (rotary embeddings, biases, ...).

    Attributes:
        hidden_states: Input tokens, (B, P+N, D).
        args: The other positional arguments.
        kwargs: The other keyword arguments.
    """

    hidden_states: Tensor
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)

    def replay(self, block: nn.Module, hidden_states: Tensor) -> Tensor:
        """Runs ``block`` on other tokens (B, P+N, D) with the recorded arguments and returns its output tokens.

        They get the type of the recorded ones: refined tokens of a half-precision teacher are float32.
        """
        return first_tensor(block(hidden_states.to(self.hidden_states.dtype), *self.args, **self.kwargs))

    def write(self, block: nn.Module, hidden_states: Tensor) -> Tensor:
        """What ``block`` adds to tokens x (B, P+N, D) with the recorded arguments: ``u(x) = block(x) - x``."""
        return self.replay(block, hidden_states) - hidden_states

    def select(self, images: Tensor, batched: Sequence[bool]) -> "BlockCall":
        """The call for some of its images.

        Args:
            images: Indices of the images, (K,).
            batched: For every value of the call, in the order of :meth:`leaves`, whether it has a row for each image;
                from :meth:`FeatureCapture.batched_values`.
        """
        leaves, form = tree_flatten((self.hidden_states, self.args, self.kwargs))
        chosen = [leaf[images] if rows else leaf for leaf, rows in zip(leaves, batched, strict=True)]
        return BlockCall(*tree_unflatten(chosen, form))

    def leaves(self) -> list:
        """All values of the call, tensors (...) and others: the tokens first, then the arguments, unpacked."""
        return tree_leaves((self.hidden_states, self.args, self.kwargs))


@dataclass(frozen=True)
class CapturedFeatures:
    """Tokens and calls captured in one forward pass.

    Attributes:
        outputs: Block index -> tokens (B, P+N, D) after the block, before the final norm.
        calls: Block index -> :class:`BlockCall`.
    """

    outputs: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, BlockCall] = field(default_factory=dict)

    def select(self, images: Tensor, batched: Mapping[int, Sequence[bool]]) -> "CapturedFeatures":
        """The tokens and calls of some images.

        Args:
            images: Indices of the images, (K,).
            batched: Block index -> which values of its call have a row for each image, see :meth:`BlockCall.select`.
        """
        outputs = {i: tokens[images] for i, tokens in self.outputs.items()}
        return CapturedFeatures(outputs, {i: call.select(images, batched[i]) for i, call in self.calls.items()})


class FeatureCapture:
    """Captures the tokens after given blocks, and the calls of given blocks, in one forward pass.

    The forward pass ends after the last block that is needed: no later block, norm or head is computed. The hooks are
    attached only during a call, and no tensor is kept after it. As a context manager the capture keeps its hooks
    attached for the whole ``with`` statement, which compilation needs:

        with capture:
            features = torch.compile(capture)(pixel_values)

    The hooks are partial functions instead of closures, so a model with hooks can be copied, pickled and compiled.

    Args:
        view: The view of the model.
        layers: 0-based indices of the blocks whose outputs are captured.
        calls: 0-based indices of the blocks whose calls are captured.
    """

    def __init__(self, view: ViTView, layers: Iterable[int], calls: Iterable[int] = ()) -> None:
        self.view = view
        self.layers, self.call_layers = tuple(sorted(set(layers))), tuple(sorted(set(calls)))
        self.last = max((*self.layers, *self.call_layers))
        self.features: CapturedFeatures | None = None
        self._handles: list = []
        self._depth = 0

    def __enter__(self) -> "FeatureCapture":
        self._depth += 1
        if self._depth == 1:
            self._attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def __call__(self, pixel_values: Tensor) -> CapturedFeatures:
        """Runs the model on ``pixel_values`` (B, 3, H, W) up to the last block that is needed.

        Raises:
            ValueError: If the tokens are not prefix tokens followed by one token for each cell of the patch grid.
        """
        with self:
            features = self._run(pixel_values)
        self._check_tokens(features, pixel_values)
        return features

    def compile(self) -> None:
        """Compiles the captured pass with ``torch.compile``; the hooks stay attached from now on."""
        self.__enter__()
        self._run = torch.compile(self._run)

    def _run(self, pixel_values: Tensor) -> CapturedFeatures:
        features = self.features = CapturedFeatures({}, {})
        try:
            self.view.backbone(pixel_values, **self.view.forward_kwargs(pixel_values))
        except _StopForwardError:
            pass
        finally:
            self.features = None
        return features

    @torch.no_grad()
    def batched_values(self, image_size: tuple[int, int]) -> dict[int, list[bool]]:
        """For every captured call, which of its values have a row for each image.

        Found by running one image and two: rotary embeddings or biases may by chance be as long as a batch.

        Args:
            image_size: (height, width) of images that the model takes, in pixels.

        Raises:
            ValueError: If a value depends on the number of images in another way.
        """
        weight = self.view.patch_embedding.weight
        images = torch.zeros(2, 3, *image_size, device=weight.device, dtype=weight.dtype)
        one, two = self(images[:1]).calls, self(images).calls
        return {i: [self._has_rows(*pair) for pair in zip(one[i].leaves(), two[i].leaves(), strict=True)] for i in one}

    def _has_rows(self, of_one: object, of_two: object) -> bool:
        if not isinstance(of_one, Tensor) or of_one.shape == of_two.shape:
            return False
        if (of_one.shape[0], of_two.shape[0]) != (1, 2) or of_one.shape[1:] != of_two.shape[1:]:
            raise ValueError(
                f"{type(self.view.backbone).__name__} gives its blocks a tensor of shape {tuple(of_one.shape)} for "
                f"one image and {tuple(of_two.shape)} for two: its images cannot be told apart; set `info_share=1`"
            )
        return True

    def _attach(self) -> None:
        blocks = self.view.blocks
        self._handles = [blocks[i].register_forward_hook(partial(_keep_output, self, i)) for i in self.layers]
        for i in self.call_layers:
            hook = partial(_keep_call, self, i)
            self._handles.append(blocks[i].register_forward_pre_hook(hook, with_kwargs=True))

    def _check_tokens(self, features: CapturedFeatures, pixel_values: Tensor) -> None:
        last = self.last
        tokens = features.outputs[last] if last in features.outputs else features.calls[last].hidden_states
        shape = tuple(tokens.shape)
        rows, columns = self.view.grid(*pixel_values.shape[-2:])
        expected = (len(pixel_values), self.view.num_prefix_tokens + rows * columns, self.view.hidden_size)
        if shape != expected:
            raise ValueError(
                f"{type(self.view.backbone).__name__} returned tokens of shape {shape} for images of shape "
                f"{tuple(pixel_values.shape)}, expected {expected}: {self.view.num_prefix_tokens} prefix tokens and a "
                f"{rows} x {columns} grid. Its tokens cannot be laid out on a grid"
            )


def _keep_output(capture: FeatureCapture, index: int, module: nn.Module, args: tuple, output: object) -> None:
    if capture.features is not None:
        capture.features.outputs[index] = first_tensor(output)
        if index == capture.last:
            raise _StopForwardError


def _keep_call(capture: FeatureCapture, index: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
    if capture.features is not None:
        if args:
            capture.features.calls[index] = BlockCall(args[0], args[1:], kwargs)
        else:
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            capture.features.calls[index] = BlockCall(kwargs["hidden_states"], (), others)
        if index == capture.last and index not in capture.layers:
            raise _StopForwardError


def first_tensor(output: object) -> Tensor:
    """The tokens (B, P+N, D) in the output of a block, which is a tuple in some model families."""
    return output[0] if isinstance(output, tuple) else output


def capture_features(model: nn.Module, pixel_values: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
    """Returns the tokens (B, P+N, D) after the given blocks, before the final norm, from one forward pass.

    Args:
        model: Any vision transformer. Its adapters stay active, so blocks after an adapter get refined tokens.
        pixel_values: Images (B, 3, H, W), normalised for the model.
        layers: 0-based block indices.
    """
    return FeatureCapture(view_vit(model), layers)(pixel_values).outputs
