"""One structural view of any vision transformer: found by structure, never by a model's name.

Nothing here runs the model, so a view can be taken of a model on the meta device.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from singer_hf.vit.blocks import (
    InputProjection,
    attention_linears,
    block_width,
    is_block,
    is_norm,
    mlp_linears,
    owner_of,
)

# Names that the embeddings of Hugging Face and timm models give to learned tokens put before the patches.
_CLASS_TOKEN_NAMES = ("cls_token", "class_embedding", "distillation_token", "dist_token")
_REGISTER_TOKEN_NAMES = ("register_tokens", "reg_token")


@dataclass(frozen=True)
class ViTView:
    """Where the parts of a vision transformer are. Made by :func:`view_vit`.

    Attributes:
        backbone: The innermost module that turns ``pixel_values`` (B, 3, H, W) into tokens; call it positionally.
        blocks_path: Path of the list of blocks in the model that was given, for example ``"encoder.layer"``.
        blocks: The transformer blocks in order, without PEFT wrappers around them.
        hidden_size: Width D of the tokens.
        num_prefix_tokens: Tokens before the patches: class, distillation and register tokens.
        num_class_tokens: Those of them that are no registers; they stand first.
        patch_embedding: The convolution that makes the patch tokens.
        final_norm: The norm behind the last block, or None.
        image_size: (height, width) of the configured input in pixels, or None where no config tells.
    """

    backbone: nn.Module
    blocks_path: str
    blocks: tuple[nn.Module, ...]
    hidden_size: int
    num_prefix_tokens: int
    num_class_tokens: int
    patch_embedding: nn.Conv2d
    final_norm: nn.Module | None
    image_size: tuple[int, int] | None

    @property
    def num_blocks(self) -> int:
        """Number L of blocks."""
        return len(self.blocks)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return self.patch_embedding.stride

    def block_name(self, index: int) -> str:
        """Path of block ``index`` in the model, as ``named_modules`` gives it."""
        return f"{self.blocks_path}.{index}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches for an image of ``height`` x ``width`` pixels."""
        kernel, stride, padding = (
            self.patch_embedding.kernel_size,
            self.patch_embedding.stride,
            self.patch_embedding.padding,
        )
        padding = (0, 0) if isinstance(padding, str) else padding
        sizes = zip((height, width), kernel, stride, padding, strict=True)
        rows, columns = ((size + 2 * pad - k) // s + 1 for size, k, s, pad in sizes)
        return rows, columns

    def forward_kwargs(self, pixel_values: Tensor) -> dict:
        """Keyword arguments with which ``backbone`` keeps the patch order and accepts the size of ``pixel_values``.

        Args:
            pixel_values: Images (B, 3, H, W).
        """
        parameters = inspect.signature(self.backbone.forward).parameters
        size, kwargs = tuple(pixel_values.shape[-2:]), {}
        if "interpolate_pos_encoding" in parameters and self.image_size not in (None, size):
            kwargs["interpolate_pos_encoding"] = True
        if "noise" in parameters:  # masked autoencoders sort the patches by it
            rows, columns = self.grid(*size)
            order = torch.arange(rows * columns, device=pixel_values.device, dtype=torch.float32)
            kwargs["noise"] = order.expand(len(pixel_values), -1)
        return kwargs

    def next_block(self, index: int) -> int:
        """The block that reads what block ``index`` writes: the next one; for the last block itself, as a stand-in."""
        return min(index + 1, self.num_blocks - 1)

    def mlp_layers(self, index: int) -> tuple[nn.Linear, nn.Linear]:
        """First and last linear layer of the MLP of block ``index``; of a gated MLP the one before the last."""
        return tuple(linear for _, linear in mlp_linears(self.blocks[index])[-2:])

    def has_gated_mlp(self, index: int) -> bool:
        """Whether the MLP of block ``index`` multiplies its values by an activated gate."""
        linears = [linear for _, linear in mlp_linears(self.blocks[index])]
        return len(linears) > 2 or linears[0].out_features != linears[1].in_features

    def mlp_weights(self, index: int) -> tuple[Tensor, Tensor]:
        """Input (H, D) and output (D, H) weights of the MLP of block ``index``.

        A gated MLP gives its value path: the branch that is multiplied by the activated gate. Packed gate and value
        weights are split.
        """
        fc_in, fc_out = self.mlp_layers(index)
        weight, hidden = fc_in.weight, fc_out.in_features
        if weight.shape[0] == 2 * hidden:
            value_first = getattr(owner_of(self.blocks[index], fc_in), "gate_last", False)
            weight = weight[:hidden] if value_first else weight[hidden:]
        return weight, fc_out.weight

    def layer_scales(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """LayerScale vectors (D,) behind the attention and behind the MLP of block ``index``; None where absent."""
        scales = [
            parameter
            for name, parameter in self.blocks[index].named_parameters()
            if "attn." not in name and any(part.startswith(("lambda", "gamma")) for part in name.split("."))
        ]
        return (scales[0], scales[1]) if len(scales) > 1 else (scales[0] if scales else None, None)

    def input_projections(self, index: int) -> Iterator[InputProjection]:
        """Every linear layer through which block ``index`` reads its tokens after its norms.

        These are the query, key and value maps behind the first norm and the MLP's input maps behind the second.

        Raises:
            ValueError: If the block does not have one norm before the attention and one before the MLP.
        """
        block = self.blocks[index]
        norms = [module for module in block.children() if is_norm(module)]
        if len(norms) != 2 or "post" in type(block).__name__.lower():
            raise ValueError(
                f"{type(block).__name__} is no pre-norm block with two norms, so its linear reads are not known; "
                'use `nullspace_source="mlp"` or "jacobian"'
            )
        reading_attention = attention_linears(block)[:-1]  # the last one is the output projection
        reading_mlp = [item for item in mlp_linears(block) if item[1].in_features == self.hidden_size]
        for norm, linears in ((norms[0], reading_attention), (norms[1], reading_mlp)):
            centered = "rms" not in type(norm).__name__.lower()
            for name, linear in linears:
                yield InputProjection(name, linear.weight, getattr(norm, "weight", None), centered)


def view_vit(model: nn.Module) -> ViTView:
    """Takes the structural view of a vision transformer from transformers or timm, with or without a head or adapters.

    Args:
        model: The model, its ``PeftModel``, or a composite model with one vision tower (CLIP, SigLIP).

    Raises:
        ValueError: If the model is not a plain vision transformer; the message names the class and what is missing.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    path, blocks = _find_blocks(model)
    hidden_size = block_width(blocks[0])
    root = _backbone_path(model, path, hidden_size)
    backbone = model.get_submodule(root)
    _refuse_shuffling(model)
    return ViTView(
        backbone=backbone,
        blocks_path=path,
        blocks=blocks,
        hidden_size=hidden_size,
        num_prefix_tokens=_count_tokens(backbone, hidden_size, _CLASS_TOKEN_NAMES + _REGISTER_TOKEN_NAMES),
        num_class_tokens=_count_tokens(backbone, hidden_size, _CLASS_TOKEN_NAMES),
        patch_embedding=_patch_embedding(backbone, hidden_size),
        final_norm=_final_norm(model, path, root),
        image_size=_image_size(model, backbone),
    )


def _refuse(model: nn.Module, reason: str) -> ValueError:
    return ValueError(f"{type(model).__name__} is not supported: {reason}")


def _unwrap(module: nn.Module) -> nn.Module:
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def _find_blocks(model: nn.Module) -> tuple[str, tuple[nn.Module, ...]]:
    """The list of blocks that lies closest to a patch embedding, so that text towers and decoders lose."""
    candidates = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and "base_layer" not in name.split("."):
            blocks = tuple(_unwrap(child) for child in module)
            if len({type(block) for block in blocks}) == 1 and is_block(blocks[0]):
                candidates[name] = blocks
    if not candidates:
        raise _refuse(model, "it has no list of transformer blocks (an attention and an MLP of two linear layers)")
    roots = {name: _backbone_path(model, name, block_width(blocks[0])) for name, blocks in candidates.items()}
    roots = {name: root for name, root in roots.items() if root is not None}
    if not roots:
        raise _refuse(
            model, "it has no patch embedding (a Conv2d that writes tokens of the blocks' width) on a fixed grid"
        )
    path, root = max(roots.items(), key=lambda item: item[1].count(".") + bool(item[1]))
    rivals = [name for name in candidates if name != path and (not root or name.startswith(root + "."))]
    if rivals:
        raise _refuse(model, f"its blocks are spread over several lists ({', '.join([path, *rivals])})")
    return path, candidates[path]


def _backbone_path(model: nn.Module, blocks_path: str, hidden_size: int) -> str | None:
    parent = blocks_path
    while parent:
        parent = parent.rpartition(".")[0]
        if _patch_embedding(model.get_submodule(parent), hidden_size) is not None:
            return parent
    return None


def _patch_embedding(module: nn.Module, hidden_size: int) -> nn.Conv2d | None:
    convolutions = (child for child in module.modules() if isinstance(child, nn.Conv2d))
    return next((conv for conv in convolutions if conv.out_channels == hidden_size), None)


def _final_norm(model: nn.Module, blocks_path: str, root: str) -> nn.Module | None:
    """The first norm that stands behind the blocks among their neighbours, from the inside out."""
    path = blocks_path
    while path != root:
        path, _, name = path.rpartition(".")
        names, children = zip(*model.get_submodule(path).named_children(), strict=True)
        behind = children[names.index(name) + 1 :]
        if norm := next((child for child in behind if is_norm(child)), None):
            return norm
    return None


def _count_tokens(backbone: nn.Module, hidden_size: int, names: tuple[str, ...]) -> int:
    tokens = (
        parameter
        for name, parameter in backbone.named_parameters()
        if name.rpartition(".")[2] in names and parameter.shape[-1] == hidden_size
    )
    return sum(token.numel() // hidden_size for token in tokens)


def _vision_config(model: nn.Module) -> object:
    config = getattr(model, "config", None)
    return getattr(config, "vision_config", config)


def _image_size(model: nn.Module, backbone: nn.Module) -> tuple[int, int] | None:
    size = getattr(_vision_config(model), "image_size", None)
    size = size or getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    return (size, size) if isinstance(size, int) else tuple(size) if size else None


def _refuse_shuffling(model: nn.Module) -> None:
    if getattr(_vision_config(model), "mask_ratio", 0):
        raise _refuse(model, "it drops and shuffles patches; load it with `mask_ratio=0.0` in its config")
