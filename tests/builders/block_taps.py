"""Inputs and outputs of modules inside a block, recorded by hooks."""

import torch
import zoo
from torch import nn

from singer_hf.vit.structure import view_vit

BLOCK = 1


def tap(modules: dict[str, nn.Module]) -> dict[str, tuple]:
    """Records (input, output) of each module under its key by hooks."""
    seen = {}

    def note(key: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            first = args[0] if args else kwargs["hidden_states"]
            seen[key] = (first, output[0] if isinstance(output, tuple) else output)

        return hook

    for key, module in modules.items():
        module.register_forward_hook(note(key), with_kwargs=True)
    return seen


def run_backbone(model: nn.Module) -> None:
    view = view_vit(model)
    pixel_values = zoo.images()
    with torch.no_grad():
        view.backbone(pixel_values, **view.forward_kwargs(pixel_values))


def block_parts(block: nn.Module) -> dict[str, nn.Module]:
    names = dict(block.named_modules())
    parts = {name: module for name, module in names.items() if isinstance(module, nn.Linear)}
    norms = [module for module in block.children() if "norm" in type(module).__name__.lower()]
    return {**parts, "norm1": norms[0], "norm2": norms[1], "block": block}
