"""ONNX files: equal to the model in onnxruntime, and never half written."""

import importlib.util
import re

import pytest
import torch
from exporting import BATCH_SIZES, assert_close, other_student, shortened, with_gate
from zoo import images

from singer_hf.export import export_onnx, export_program, onnx_file
from singer_hf.export.exported_model import ExportedModel
from singer_hf.export.program import run
from singer_hf.vit.inference import unwrap_peft

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

MODELS = {
    "cleaned vit": lambda: with_gate(shortened("vit", 1)),
    "vit with a closed gate": lambda: with_gate(shortened("vit", 1), is_open=False),
    "bare vit": lambda: shortened("vit", 1),
    "cleaned dinov3": lambda: with_gate(shortened("dinov3", 1)),
    "half precision resnet": lambda: other_student("resnet").bfloat16(),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return {name: export_onnx(build(), folder / f"{name}.onnx", image_size=32) for name, build in MODELS.items()}


def run_file(file: object, pixel_values: torch.Tensor) -> dict:
    session = onnxruntime.InferenceSession(str(file))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixel_values": pixel_values.numpy()}), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_gives_the_models_outputs_at_any_batch_size(files, name):
    exported = ExportedModel(MODELS[name](), image_size=32).float()
    for batch_size in BATCH_SIZES:
        pixel_values = images(batch=batch_size, seed=1)
        assert_close(run_file(files[name], pixel_values), run(exported, pixel_values))


def test_the_first_output_is_the_models_own(files):
    with torch.no_grad():
        expected = unwrap_peft(MODELS["cleaned vit"]())(images()).last_hidden_state
    found = torch.from_numpy(run_file(files["cleaned vit"], images())["last_hidden_state"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_adapter_acts_in_the_file_where_its_gate_is_open(files):
    cleaned, closed, bare = (
        torch.from_numpy(run_file(files[name], images(batch=3))["feature_map"])
        for name in ("cleaned vit", "vit with a closed gate", "bare vit")
    )
    assert (cleaned - bare).abs().max() > 0.1
    torch.testing.assert_close(closed, bare, rtol=1e-4, atol=1e-4)


def test_a_file_holds_its_weights_and_names_no_folder_of_this_computer(files):
    for file in files.values():
        graph = onnx.load(file, load_external_data=False).graph
        assert graph.initializer
        assert not any(tensor.external_data for tensor in graph.initializer)
        assert [entry.name for entry in graph.input] == ["pixel_values"]
        assert re.search(rb"site-packages|\.py\b", file.read_bytes()) is None
    assert {path.name for path in file.parent.iterdir()} == {path.name for path in files.values()}


def test_a_new_file_replaces_an_earlier_one_and_its_folder_is_made(tmp_path):
    file = tmp_path / "new" / "model.onnx"
    file.parent.mkdir()
    file.write_text("earlier")
    assert export_onnx(other_student("resnet"), str(file), image_size=32) == file
    assert_close(run_file(file, images()), run(ExportedModel(other_student("resnet"), 32), images()))
    assert list(file.parent.iterdir()) == [file]


class _Cut(Exception):
    """An interruption."""


@pytest.mark.parametrize("step", ["_write", "_check_outputs"])
def test_an_interrupted_export_leaves_the_earlier_file(tmp_path, monkeypatch, step):
    def cut(*args: object) -> None:
        raise _Cut

    file = tmp_path / "model.onnx"
    file.write_text("earlier")
    monkeypatch.setattr(onnx_file, "_write", lambda exported, unfinished: unfinished.write_text("half"))
    monkeypatch.setattr(onnx_file, step, cut)
    with pytest.raises(_Cut):
        export_onnx(other_student("resnet"), file, image_size=32)
    assert file.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_gives_other_outputs_is_not_written(tmp_path, monkeypatch):
    def export_another(exported: ExportedModel) -> torch.export.ExportedProgram:
        return export_program(other_student("resnet").requires_grad_(False).apply(_shift), image_size=32)

    def _shift(module: torch.nn.Module) -> None:
        if isinstance(module, torch.nn.Conv2d):
            module.weight.add_(0.5)

    monkeypatch.setattr(onnx_file, "trace", export_another)
    message = (
        r"^`last_hidden_state` of the ONNX file must equal the model's up to 0\.0001, got a difference of [\d.e+]+ "
        r"for a batch of 1; nothing was written$"
    )
    with pytest.raises(ValueError, match=message):
        export_onnx(other_student("resnet"), tmp_path / "model.onnx", image_size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_torch_cannot_convert_is_refused(tmp_path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("see below") from TypeError("no such operator\nand a traceback")

    monkeypatch.setattr(torch.onnx, "export", fail)
    message = f"`model` must be one that torch.onnx can convert, ResNetModel failed under torch {torch.__version__}: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}no such operator$"):
        export_onnx(other_student("resnet"), tmp_path / "model.onnx", image_size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", [["onnxruntime"], ["onnx", "onnxruntime", "onnxscript"]])
def test_missing_libraries_are_named_before_anything_else(tmp_path, monkeypatch, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    message = f'ONNX export needs {", ".join(missing)}; pip install "singer-hf[onnx]"'
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        export_onnx(None, tmp_path / "new" / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_one_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 1000)
    message = (
        "`model` must have less than 0.0 GB of weights in float32 for one ONNX file, got 0.0 GB; use `export_program`"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        export_onnx(other_student("resnet"), tmp_path / "model.onnx")


def test_a_folder_instead_of_a_file_is_refused(tmp_path):
    message = f"`file` must be the name of a file, got the folder {str(tmp_path)!r}; add a name such as model.onnx"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        export_onnx(other_student("resnet"), tmp_path)


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan")])
def test_a_tolerance_that_is_none_is_refused(tmp_path, tolerance):
    message = f"`tolerance` must be greater than 0, got {tolerance!r}; leave it out for 1e-4"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        export_onnx(other_student("resnet"), tmp_path / "model.onnx", tolerance=tolerance)
