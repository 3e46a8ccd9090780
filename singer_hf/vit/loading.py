"""Models by module, local folder, Hub id, config, or the name of a file of the package."""

import inspect
from pathlib import Path

from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from singer_hf.configs import MODELS, TRAINED, find, hint

# Values of the keyword arguments `dtype` and `attn_implementation` of `load_model` in commands.
DTYPES = ("float32", "bfloat16", "float16", "auto")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_NO_POOLER = "add_pooling_layer"
_MODEL_ONLY = ("dtype", "attn_implementation")


def load_model(model: nn.Module | str, argument: str, **kwargs: object) -> nn.Module:
    """Loads a model (transformers or ``timm/``) from a folder or the Hub without its pooler; modules pass through.

    Args:
        model: A module, a local folder, a Hub id, or ``"demo-teacher"``.
        argument: Name of the argument, for error messages.
        **kwargs: Keyword arguments of ``from_pretrained``: ``revision``, ``token``, ``trust_remote_code``, ``dtype``
            ("auto", the default: that of the saved weights), ``attn_implementation``. Modules keep what they have.

    Raises:
        FileNotFoundError: If there is no such folder or Hub model.
        ValueError: If a library that ``attn_implementation`` needs is not installed.
    """
    if isinstance(model, nn.Module):
        return model
    folder = find(model, TRAINED)
    try:
        config = AutoConfig.from_pretrained(folder, **{k: v for k, v in kwargs.items() if k not in _MODEL_ONLY})
        return AutoModel.from_pretrained(folder, **_without_pooler(config), **kwargs)
    except OSError as error:
        end = f"; {hint(model, TRAINED)}" if _is_unknown_name(folder) else f": {error}"
        raise FileNotFoundError(
            f"`{argument}` must be a module, a local folder with config.json and weights, or a Hub id, got {model!r}"
            f"{end}"
        ) from error
    except ImportError as error:
        if kwargs.get("attn_implementation") is None:
            raise
        raise ValueError(
            f"`attn_implementation` must be one that is installed, got {kwargs['attn_implementation']!r}: {error}"
        ) from error


def model_from_config(config: str | Path, argument: str = "student_config") -> PreTrainedModel:
    """Creates a model with random weights.

    Args:
        config: See :func:`load_config`.
        argument: Name of the argument, for error messages.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    loaded = load_config(config, argument)
    loaded.name_or_path = ""  # the model does not have the weights of that folder
    return AutoModel.from_config(loaded, **_without_pooler(loaded))


def load_config(config: str | Path, argument: str = "student_config") -> PreTrainedConfig:
    """Loads the config of a model.

    Args:
        config: A JSON file, a folder with config.json, the name of a config of the package, or a Hub id.
        argument: Name of the argument, for error messages.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    place, wanted = find(config, MODELS), f"`{argument}` must be a JSON file, a folder with config.json, a name of the"
    if _is_unknown_name(place):
        raise FileNotFoundError(f"{wanted} package, or a Hub id, got {place!r}; {hint(place, MODELS)}")
    try:
        return AutoConfig.from_pretrained(place)
    except OSError as error:
        raise FileNotFoundError(f"{wanted} package, or a Hub id, got {str(config)!r}: {error}") from error


def _is_unknown_name(place: str) -> bool:
    return "/" not in place and not Path(place).exists()  # Hub ids have a user


def _without_pooler(config: object) -> dict[str, bool]:
    # A pooler follows the final norm, which feature distillation does not train.
    model_class = AutoModel._model_mapping.get(type(config), None)
    if inspect.isclass(model_class) and _NO_POOLER in inspect.signature(model_class.__init__).parameters:
        return {_NO_POOLER: False}
    return {}
