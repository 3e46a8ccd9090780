"""PEFT 0.18 to 0.20, which saves and loads only the methods of its own enum and does not ask the tuner.

PEFT 0.21 calls ``_get_adapter_state_dict`` and ``_remap_adapter_state_dict_for_load`` of the tuner. For the versions
before it, the two functions that save and load weights are wrapped, for SiNGER alone. With PEFT 0.21 as the lower
bound this module can be deleted.
"""

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from peft import PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import save_and_load
from torch import Tensor, nn

from singer_hf.tuner.config import SingerPeftType
from singer_hf.tuner.model import SingerModel, adapter_settings

_SAVE, _LOAD = "get_peft_model_state_dict", "set_peft_model_state_dict"


def support_old_peft() -> None:
    """Makes PEFT before 0.21 save and load SiNGER adapters; newer versions stay as they are."""
    if hasattr(BaseTuner, "_get_adapter_state_dict") or isinstance(save_and_load.PeftType, _KnownTypes):
        return
    save_and_load.PeftType = _KnownTypes()
    _replace(_SAVE, _saving(getattr(save_and_load, _SAVE)))
    _replace(_LOAD, _loading(getattr(save_and_load, _LOAD)))


class _KnownTypes:
    """PEFT's enum with SiNGER among its members; the enum itself cannot be extended."""

    def __getattr__(self, name: str) -> Any:
        return getattr(PeftType, name)

    def __iter__(self) -> Iterator[Any]:
        return iter([*PeftType, SingerPeftType.SINGER])


def _replace(name: str, function: Callable) -> None:
    original = getattr(save_and_load, name)
    modules = [module for key, module in sys.modules.items() if key.partition(".")[0] == "peft"]
    for module in modules:
        if getattr(module, name, None) is original:
            setattr(module, name, function)


def _saving(original: Callable) -> Callable:
    @wraps(original)
    def get_peft_model_state_dict(
        model: nn.Module, state_dict: Any = None, adapter_name: str = "default", **kwargs: Any
    ) -> dict[str, Tensor]:
        config = model.peft_config[adapter_name]
        if config.peft_type != SingerPeftType.SINGER:
            return original(model, state_dict, adapter_name, **kwargs)
        config.prepare_saving(adapter_name, adapter_settings(model, adapter_name))
        saved = original(model, state_dict, adapter_name, **kwargs)
        others = tuple(f".{name}." for name in model.peft_config if name != adapter_name)  # 0.18 saves them as well
        return {key: value for key, value in saved.items() if not any(other in key for other in others)}

    return get_peft_model_state_dict


def _loading(original: Callable) -> Callable:
    @wraps(original)
    def set_peft_model_state_dict(
        model: nn.Module, peft_model_state_dict: dict, adapter_name: str = "default", *args: Any, **kwargs: Any
    ) -> Any:
        config = model.peft_config[adapter_name]
        if config.peft_type == SingerPeftType.SINGER:
            weights = SingerModel._remap_adapter_state_dict_for_load(
                model, config, adapter_name, peft_model_state_dict
            )
            peft_model_state_dict = {_without_name(key, adapter_name): value for key, value in weights.items()}
        return original(model, peft_model_state_dict, adapter_name, *args, **kwargs)

    return set_peft_model_state_dict


def _without_name(key: str, adapter_name: str) -> str:
    # The original function puts the name behind the prefix.
    for kind in SingerModel.tuner_layer_cls.adapter_layer_names:
        key = key.replace(f".{kind}.{adapter_name}.", f".{kind}.")
    return key
