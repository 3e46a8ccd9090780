"""The search for the parts of a vision transformer, by structure instead of by a model's name.

The model is not run, so a model on the meta device has a view as well.
"""

from torch import nn

from singer_hf.vit.blocks import block_width, is_block, is_norm
from singer_hf.vit.inference import unwrap_peft
from singer_hf.vit.view import ViTView

# Names of the learned tokens before the patches in models of transformers and timm.
_CLASS_TOKEN_NAMES = ("cls_token", "class_embedding", "distillation_token", "dist_token")
_REGISTER_TOKEN_NAMES = ("register_tokens", "reg_token")


def view_vit(model: nn.Module) -> ViTView:
    """Finds the parts of a vision transformer from transformers or timm, with or without a head or adapters.

    Args:
        model: The model, its ``PeftModel``, or a composite model with one vision tower (CLIP, SigLIP).

    Raises:
        ValueError: If the model is not a plain vision transformer; the message names the class and what is missing.
    """
    model = unwrap_peft(model)
    path, root, blocks = _find_blocks(model)
    hidden_size, backbone = block_width(blocks[0]), model.get_submodule(root)
    if getattr(_vision_config(model), "mask_ratio", 0):
        raise _unsupported(model, "it drops and shuffles patches; load it with `mask_ratio=0.0` in its config")
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


def _unsupported(model: nn.Module, reason: str) -> ValueError:
    return ValueError(f"{type(model).__name__} is not supported: {reason}")


def _unwrap(module: nn.Module) -> nn.Module:
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def _find_blocks(model: nn.Module) -> tuple[str, str, tuple[nn.Module, ...]]:
    """Path, backbone path and blocks of the list of blocks that is closest to a patch embedding.

    Text towers and decoders have no patch embedding close to their blocks.
    """
    candidates = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and "base_layer" not in name.split("."):
            blocks = tuple(_unwrap(child) for child in module)
            if len({type(block) for block in blocks}) == 1 and is_block(blocks[0]):
                candidates[name] = blocks
    if not candidates:
        raise _unsupported(
            model, "it has no list of transformer blocks (an attention and an MLP of two linear layers)"
        )
    roots = {name: _backbone_path(model, name, block_width(blocks[0])) for name, blocks in candidates.items()}
    roots = {name: root for name, root in roots.items() if root is not None}
    if not roots:
        raise _unsupported(
            model, "it has no patch embedding (a Conv2d whose output has the blocks' width) on a fixed grid"
        )
    path, root = max(roots.items(), key=lambda item: item[1].count(".") + bool(item[1]))
    rivals = [name for name in candidates if name != path and (not root or name.startswith(root + "."))]
    if rivals:
        raise _unsupported(model, f"its blocks are spread over several lists ({', '.join([path, *rivals])})")
    return path, root, candidates[path]


def _backbone_path(model: nn.Module, blocks_path: str, hidden_size: int) -> str | None:
    """Path of the innermost module that holds both the blocks and a patch embedding of their width."""
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
    """The first norm after the blocks among the children of their parent module, or of its parents in turn."""
    path = blocks_path
    while path != root:
        path, _, name = path.rpartition(".")
        names, children = zip(*model.get_submodule(path).named_children(), strict=True)
        following = children[names.index(name) + 1 :]
        if norm := next((child for child in following if is_norm(child)), None):
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
