"""Feature maps of models that are no plain vision transformers, such as the CNNs of transformers."""

from torch import Tensor, nn


def feature_maps(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, ...]:
    """Runs a model that returns its feature maps as ``hidden_states``: the stem and the stages of a CNN or of Swin.

    Args:
        model: A model of transformers.
        pixel_values: Images (B, 3, H, W).

    Returns:
        Feature maps (B, C, rows, columns), first stage first.

    Raises:
        ValueError: If the model returns no hidden states, or hidden states of another shape.
    """
    try:
        output = model(pixel_values=pixel_values, output_hidden_states=True)
        maps = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
    except (TypeError, AttributeError) as error:
        raise ValueError(f"`model` must return `hidden_states`, got {type(model).__name__}: {error}") from error
    if not maps or any(feature_map.ndim != 4 for feature_map in maps):
        shapes = [tuple(feature_map.shape) for feature_map in maps or ()]
        raise ValueError(f"`model` must return feature maps (B, C, rows, columns) as `hidden_states`, got {shapes}")
    return tuple(maps)
