"""Models and image processors by module, local folder or Hub id."""

import inspect
from pathlib import Path

from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel, ViTImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from singer_hf.transforms import image_spec

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


def load_image_processor(name: str | None) -> BaseImageProcessor | None:
    """The image processor saved with a model; None without a name or where nothing was saved."""
    if name is None or (Path(name).exists() and not _saves_processor(Path(name))):
        return None
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None


def _saves_processor(folder: Path) -> bool:
    # Without this look transformers would make up one with the defaults of the model's family.
    config = folder / "config.json"
    is_timm = config.is_file() and "pretrained_cfg" in config.read_text(encoding="utf-8")
    return is_timm or (folder / "preprocessor_config.json").is_file()


def student_image_processor(
    student: nn.Module, teacher_processor: BaseImageProcessor | None
) -> BaseImageProcessor | None:
    """A processor for a student that has none: the teacher's normalisation at the size in the student's config."""
    size = getattr(getattr(student, "config", None), "image_size", None)
    if teacher_processor is None:
        return None
    spec = image_spec(teacher_processor)
    height, width = (size, size) if isinstance(size, int) else tuple(size or spec.size)
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=list(spec.mean), image_std=list(spec.std), resample=3
    )


def _without_pooler(config: object) -> dict[str, bool]:
    # A pooler reads the final norm's output, which no feature distillation trains.
    model_class = AutoModel._model_mapping.get(type(config), None)
    if inspect.isclass(model_class) and _NO_POOLER in inspect.signature(model_class.__init__).parameters:
        return {_NO_POOLER: False}
    return {}
