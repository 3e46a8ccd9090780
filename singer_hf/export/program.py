"""Programs of ``torch.export``: the model as a graph that runs without transformers, PEFT and this package."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from singer_hf.export.exported_model import ExportedModel


def export_program(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> ExportedProgram:
    """Exports a model, with its active adapters, by ``torch.export``.

    The program takes ``pixel_values`` (B, 3, H, W), normalised for the model, of any batch size and of the one image
    size. It returns a dictionary of those tensors that the model has:

    - ``last_hidden_state``: the output of that name of the model itself or, of a classifier, of the model inside;
      (B, P+N, D), P prefix tokens first, or (B, C, rows, columns) of a CNN.
    - ``logits``: (B, classes), of a model with a classification head.
    - ``feature_map``: (B, D, rows, columns), always: the patch tokens after the last block, before the final norm, or
      the last feature map of a CNN or of Swin.

    The program has its own copy of the weights, in the floating type and on the device of the model. It computes no
    gradients.

    Args:
        model: A teacher with or without SiNGER adapters, a student, or any other model of transformers that
            :func:`singer_hf.vit.structure.view_vit` recognises or that returns feature maps as ``hidden_states``.
            Adapters are exported if they are active, and refine as far as their gate lets them.
        image_size: Height and width of the images in pixels, one number for both. None: the size in the model's
            config, else 224 x 224.

    Returns:
        The program. ``torch.export.save(program, file)`` writes it.

    Raises:
        ValueError: If the model cannot run on images of this size alone, or ``torch.export`` cannot trace it.
    """
    return trace(ExportedModel(model, image_size))


def trace(exported: ExportedModel) -> ExportedProgram:
    """Returns the program of an :class:`ExportedModel`.

    Raises:
        ValueError: If ``torch.export`` cannot trace the model with a batch of any size.
    """
    run(exported, exported.example(1))  # first, for an error that is not one of tracing
    shapes = {"pixel_values": {0: Dim("batch")}}
    try:
        with torch.no_grad():
            # Not a batch of 1, which would be taken for a constant.
            program = torch.export.export(exported, (exported.example(2),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises errors of many kinds
        raise ValueError(
            f"`model` must be one that torch.export can trace, {_name(exported)} failed under torch "
            f"{torch.__version__}: {first_cause(error)}"
        ) from error
    _forget_source_files(program)
    return program


def run(exported: ExportedModel, pixel_values: Tensor) -> dict[str, Tensor]:
    """Runs an :class:`ExportedModel` without tracing and without gradients.

    Args:
        exported: The model.
        pixel_values: Images (B, 3, H, W).

    Returns:
        The named outputs, each (B, ...).

    Raises:
        ValueError: If the model fails.
    """
    try:
        with torch.no_grad():
            return exported(pixel_values)
    except Exception as error:  # whatever the code of the model raises
        height, width = pixel_values.shape[-2:]
        raise ValueError(
            f"`model` must run on images of {height} x {width} pixels and nothing else, {_name(exported)} failed: "
            f"{first_cause(error)}"
        ) from error


def first_cause(error: BaseException) -> str:
    """The first line of the error that others were raised from; those of torch's exporters have dozens of lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _name(exported: ExportedModel) -> str:
    return type(exported.model).__name__


def _forget_source_files(program: ExportedProgram) -> None:
    """Removes the traces of the Python code, which name folders of this computer, from all graphs of a program."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
