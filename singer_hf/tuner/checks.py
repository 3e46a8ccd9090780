"""Checks of a teacher, a configuration and an adapter's name before the adapter is attached."""

from peft import PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from singer_hf.tuner.config import SingerConfig
from singer_hf.tuner.layer import SingerLayer
from singer_hf.vit.view import ViTView


def check_no_other_adapters(model: nn.Module) -> None:
    """Checks that a teacher has no adapters inside that the null space would not see.

    Raises:
        ValueError: If it has adapters of another PEFT method, or is a PeftModel.
    """
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, SingerLayer)
    ]
    if others:
        raise ValueError(
            f"the teacher must have no other adapters inside, it has {len(others)} such as {others[0]!r}: merge them "
            "first (`teacher = teacher.merge_and_unload()`), as the null space is computed from the plain weights"
        )
    if isinstance(model, PeftModel):
        raise ValueError(
            "the teacher is a PeftModel already: add another SiNGER adapter with `add_adapter(name, config)`, or pass "
            "the plain teacher, `teacher.unload()`"
        )


def check_fits(config: SingerConfig, view: ViTView) -> None:
    """Checks that a configuration fits a vision transformer.

    Raises:
        ValueError: If the rank is larger than the hidden size, or the task is one of text.
    """
    if config.r is not None and config.r > view.hidden_size:
        raise ValueError(f"`r` must be at most the hidden size {view.hidden_size}, got {config.r}")
    if config.task_type not in (None, TaskType.FEATURE_EXTRACTION):
        raise ValueError(
            f"`task_type` must be left out or be 'FEATURE_EXTRACTION' for a vision transformer, got "
            f"{str(getattr(config.task_type, 'value', config.task_type))!r}: SiNGER trains no task head"
        )


def check_adapter_name(name: str, prefix: str, blocks_path: str) -> None:
    """Checks that no part of a saved key can be mistaken for an adapter's name.

    Args:
        name: Name of the adapter.
        prefix: Prefix of the method in saved keys.
        blocks_path: Path of the list of blocks in the model.

    Raises:
        ValueError: If the name is a part of saved keys, or cannot be the name of a module.
    """
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"`adapter_name` must not be the name of an attribute of torch.nn.ModuleDict, got {name!r}")
    path_parts = ("base_model", "model", *blocks_path.split("."), "weight")  # PEFT finds adapters by parts of keys
    if name.isdigit() or "." in name or name in prefix or name.startswith(prefix) or name in path_parts:
        raise ValueError(
            f"`adapter_name` must not be a number, contain a dot, be a part of {prefix!r} or start with it, or be one "
            f"of {', '.join(map(repr, path_parts))}, got {name!r}; such names break the matching of saved keys"
        )
