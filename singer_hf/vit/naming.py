"""The short name of an architecture, for titles."""

from torch import nn

from singer_hf.vit.structure import view_vit

# (blocks, width) -> the name by which papers and checkpoints call the size.
_SIZES = {(12, 192): "tiny", (12, 384): "small", (12, 768): "base", (24, 1024): "large", (32, 1280): "huge"}


def architecture_name(model: nn.Module) -> str:
    """Family and size of a model, such as ``"vit-small"`` or ``"vit-6x32"`` (6 blocks of width 32).

    Args:
        model: A model with a config; without one, and of a structure that is not known, the name is that of its class.
    """
    config = getattr(model, "config", None)
    if named := getattr(config, "architecture", None):  # a model of timm
        return named
    try:
        view = view_vit(model)
    except ValueError:
        return type(model).__name__
    size = view.num_blocks, view.hidden_size
    family = getattr(config, "model_type", "") or type(model).__name__
    return f"{family.replace('_', '-')}-{_SIZES.get(size) or '{}x{}'.format(*size)}"
