"""ONNX files, compared with the model before they get their name."""

import importlib.util
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from singer_hf.export.exported_model import ExportedModel
from singer_hf.export.program import first_cause, run, trace

MAX_BYTES = 2**31  # of a protobuf message, which an ONNX file is
_LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
_CHECKED_BATCH_SIZES = (1, 3)


def export_onnx(
    model: nn.Module, file: str | Path, image_size: int | tuple[int, int] | None = None, tolerance: float = 1e-4
) -> Path:
    """Exports a model, with its active adapters, to one ONNX file that holds its weights.

    Input and outputs have the names, shapes and meaning of :func:`singer_hf.export.program.export_program`; the batch
    size is free, the image size fixed, and all weights are in float32. Before the file gets its name, onnxruntime runs
    it with batches of 1 and 3 random images, and its outputs are compared with those of the model. If anything fails,
    a file that was there before stays as it is.

    Args:
        model: As for :func:`singer_hf.export.program.export_program`.
        file: The file, usually ``*.onnx``. Its folder is created; an earlier file is replaced.
        image_size: Height and width of the images in pixels, one number for both. None: the size in the model's
            config, else 224 x 224.
        tolerance: Largest allowed difference > 0 between onnxruntime and the model, in units of the output's largest
            absolute value, or of 1 if that is smaller.

    Returns:
        The file.

    Raises:
        ImportError: If the libraries of the extra ``onnx`` are not installed.
        ValueError: If the model is too large for one file, cannot be exported, or gives other outputs in onnxruntime;
            or if an argument is out of range.
    """
    check_libraries()
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be greater than 0, got {tolerance!r}; leave it out for 1e-4")
    file = Path(file)
    if file.is_dir():
        raise ValueError(
            f"`file` must be the name of a file, got the folder {str(file)!r}; add a name such as model.onnx"
        )
    exported = ExportedModel(model, image_size).float().cpu()
    _check_size(exported)
    with _unfinished(file) as unfinished:
        _write(exported, unfinished)
        for batch_size in _CHECKED_BATCH_SIZES:
            _check_outputs(exported, unfinished, exported.example(batch_size), tolerance)
    return file


def check_libraries() -> None:
    """Checks that the libraries of the extra ``onnx`` are installed, without importing them.

    Raises:
        ImportError: If one is missing.
    """
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX export needs {", ".join(missing)}; pip install "singer-hf[onnx]"')


def _check_size(exported: ExportedModel) -> None:
    size = sum(tensor.nbytes for tensor in (*exported.parameters(), *exported.buffers()))
    if size >= MAX_BYTES:
        raise ValueError(
            f"`model` must have less than {MAX_BYTES / 1e9:.1f} GB of weights in float32 for one ONNX file, got "
            f"{size / 1e9:.1f} GB; use `export_program`"
        )


@contextmanager
def _unfinished(file: Path) -> Iterator[Path]:
    """Context with the name of a file that replaces ``file`` at its end, or is removed if something fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
    try:
        yield unfinished
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(exported: ExportedModel, file: Path) -> None:
    program = trace(exported)
    names = list(run(exported, exported.example(1)))
    try:
        converted = torch.onnx.export(program, (), dynamo=True, output_names=names, verbose=False)
    except Exception as error:  # torch.onnx raises errors of many kinds
        raise ValueError(
            f"`model` must be one that torch.onnx can convert, {type(exported.model).__name__} failed under torch "
            f"{torch.__version__}: {first_cause(error)}"
        ) from error
    for graph in converted.model.graphs():
        for node in graph:
            node.metadata_props.clear()  # traces of the Python code, which name folders of this computer
    converted.save(file, external_data=False)


def _check_outputs(exported: ExportedModel, file: Path, pixel_values: Tensor, tolerance: float) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    expected = run(exported, pixel_values)
    found = session.run(list(expected), {"pixel_values": pixel_values.numpy()})
    for (name, reference), values in zip(expected.items(), found, strict=True):
        difference = (torch.from_numpy(values) - reference).abs().max() / reference.abs().max().clamp(min=1)
        if not difference <= tolerance:
            raise ValueError(
                f"`{name}` of the ONNX file must equal the model's up to {tolerance:g}, got a difference of "
                f"{float(difference):.2g} for a batch of {len(pixel_values)}; nothing was written"
            )
