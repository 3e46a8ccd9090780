"""The model as it is exported: pixel values in, named tensors out."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from singer_hf.vit.feature_maps import feature_maps
from singer_hf.vit.features import first_tensor
from singer_hf.vit.inference import unwrap_peft
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens, tokens_to_map
from singer_hf.vit.view import ViTView

DEFAULT_IMAGE_SIZE = (224, 224)

# What of the model's own output is exported, if the model returns it.
_OWN_OUTPUTS = ("last_hidden_state", "logits")


class ExportedModel(nn.Module):
    """A frozen copy of a model in eval mode, with tensors as its only input and outputs.

    The copy may be converted, and later training of the model does not reach it. It is frozen, because attention with
    learned biases takes another kernel where gradients are needed, whose layout does not fit the trace.

    Args:
        model: The model; active adapters stay active.
        image_size: Height and width of the images in pixels, one number for both, or None.

    Attributes:
        model: The copy without its ``PeftModel``, whose adapters are layers inside.
        view: View of a vision transformer, None for other models.
        image_size: (height, width) of the images in pixels.

    Raises:
        ValueError: If the image size is no size, or too small for the model.
    """

    def __init__(self, model: nn.Module, image_size: int | tuple[int, int] | None = None) -> None:
        super().__init__()
        self.model = copy.deepcopy(unwrap_peft(model)).eval().requires_grad_(False)
        self.view = _view_or_none(self.model)
        configured = getattr(
            getattr(self.model, "config", None) if self.view is None else self.view, "image_size", None
        )
        self.image_size = _resolve_size(image_size, configured)
        if self.view is not None:
            self.view.grid(*self.image_size)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> the model's own outputs, and ``feature_map`` (B, D, rows, columns)."""
        watched = [self.model] if self.view is None else [self.model, self.view.backbone, self._last_block()]
        with _recorded_outputs(watched) as outputs:
            if self.view is None:
                feature_map = feature_maps(self.model, pixel_values)[-1]
            else:
                self.model(pixel_values=pixel_values, **self.view.forward_kwargs(pixel_values))
                feature_map = self._to_map(first_tensor(outputs[watched[-1]]))
        named = {name: _find(name, list(outputs.values())) for name in _OWN_OUTPUTS}
        return {**{name: value for name, value in named.items() if value is not None}, "feature_map": feature_map}

    def example(self, batch_size: int) -> Tensor:
        """Random pixel values (B, 3, H, W) of the model's type and device, the same ones at every call."""
        parameter, generator = next(self.model.parameters()), torch.Generator().manual_seed(0)
        return torch.randn(batch_size, 3, *self.image_size, generator=generator).to(parameter)

    def _last_block(self) -> nn.Module:
        # With the adapter around it, unlike `view.blocks`. No attribute, as its weights would be saved twice.
        return self.model.get_submodule(self.view.block_name(self.view.num_blocks - 1))

    def _to_map(self, tokens: Tensor) -> Tensor:
        patches = split_tokens(tokens, self.view.num_prefix_tokens)[1]
        return tokens_to_map(patches, self.view.grid(*self.image_size))


@contextmanager
def _recorded_outputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, object]]:
    """Context that collects the output of each module, by module; the outermost module comes last."""
    outputs = {}

    def keep(module: nn.Module, args: tuple, output: object) -> None:
        outputs[module] = output

    handles = [module.register_forward_hook(keep) for module in set(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _find(name: str, outputs: list[object]) -> Tensor | None:
    """The field of the outermost module that returns it."""
    return next((value for output in reversed(outputs) if (value := getattr(output, name, None)) is not None), None)


def _view_or_none(model: nn.Module) -> ViTView | None:
    try:
        return view_vit(model)
    except ValueError:  # a CNN or Swin, if it returns feature maps
        return None


def _resolve_size(image_size: object, configured: object) -> tuple[int, int]:
    if image_size is None:
        image_size = configured or DEFAULT_IMAGE_SIZE
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    is_pair = isinstance(size, tuple | list) and len(size) == 2
    if not is_pair or not all(type(pixels) is int and pixels > 0 for pixels in size):
        raise ValueError(
            f"`image_size` must be a number of pixels > 0, or (height, width), got {image_size!r}; leave it out for "
            "the size in the model's config"
        )
    return tuple(size)
