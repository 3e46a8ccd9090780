"""Models and image processors by module, local folder or Hub id."""

import inspect
from pathlib import Path

from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

_NO_POOLER = "add_pooling_layer"


def load_model(model: nn.Module | str, argument: str, **kwargs: object) -> nn.Module:
    """The module itself, or the model of a local folder or Hub id (transformers or ``timm/``), without a pooler.

    Args:
        model: A module, a folder or an id.
        argument: The argument's name, for messages.
        **kwargs: For ``from_pretrained``: ``revision``, ``token``, ``trust_remote_code``.

    Raises:
        FileNotFoundError: If neither a folder nor a Hub model of that name can be read.
    """
    if isinstance(model, nn.Module):
        return model
    try:
        config = AutoConfig.from_pretrained(model, **kwargs)
        return AutoModel.from_pretrained(model, **_without_pooler(config), **kwargs)
    except OSError as error:
        raise FileNotFoundError(
            f"`{argument}` must be a module, a local folder with config.json and weights, or a Hub id, got {model!r}: "
            f"{error}"
        ) from error


def model_from_config(config: str | Path, argument: str = "student_config") -> PreTrainedModel:
    """A model with random weights from a config: a JSON file, a folder with config.json, or a Hub id.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    try:
        loaded = AutoConfig.from_pretrained(str(config))
    except OSError as error:
        raise FileNotFoundError(
            f"`{argument}` must be a JSON file, a folder with config.json, or a Hub id, got {str(config)!r}: {error}"
        ) from error
    loaded.name_or_path = ""  # it has none of the weights that may lie there
    return AutoModel.from_config(loaded, **_without_pooler(loaded))


def _without_pooler(config: object) -> dict[str, bool]:
    # A pooler reads the final norm's output, which no feature distillation trains.
    model_class = AutoModel._model_mapping.get(type(config), None)
    if inspect.isclass(model_class) and _NO_POOLER in inspect.signature(model_class.__init__).parameters:
        return {_NO_POOLER: False}
    return {}
