"""The notebooks run from the first cell to the last on tiny models, offline.

Their code cells are executed in this process, with other values for the variables of the cell tagged `parameters`. A
kernel of its own (nbclient) would have to import torch again for each of them, and needs a dozen packages more.

The notebooks are stored without outputs: those of real models could not be made again by the tests, and pictures and
pages of a report would be larger than the code by two orders of magnitude.
"""

import ast
import json
import re

import datasets
import matplotlib
import pytest
import torch
from PIL import Image
from printed import ROOT

from singer_hf.configs import TRAINED, shipped_files
from singer_hf.data.drawn_scenes import scene_dataset

NOTEBOOKS = ROOT / "examples" / "notebooks"
NAMES = ("audit_and_clean", "distil_and_evaluate")
TEACHER = str(shipped_files(TRAINED)["demo-teacher"])
STAND_INS = {
    "audit_and_clean": {
        **{"MODEL": TEACHER, "NUM_AUDIT_IMAGES": 64, "NUM_TRAINING_IMAGES": 96, "NUM_STEPS": 5},
        "OUTPUT": "cleaned",
    },
    "distil_and_evaluate": {
        **{"TEACHER": TEACHER, "STUDENT_CONFIG": "vit-4x32-patch8-64px", "NUM_STEPS": 3, "BATCH_SIZE": 16},
        **{"NUM_AUDIT_IMAGES": 64, "NUM_TEST_IMAGES": 32, "OUTPUT": "student"},
    },
}


def read(name):
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def is_parameters(cell):
    return "parameters" in cell["metadata"].get("tags", ())


@pytest.fixture
def images(tmp_path):
    """Drawn scenes in two splits, as a folder."""
    folder = tmp_path / "images"
    scenes = {"train": scene_dataset(120, seed=5), "test": scene_dataset(40, seed=6)}
    rows = {split: found.select_columns(["image", "label"]) for split, found in scenes.items()}
    datasets.DatasetDict(rows).save_to_disk(folder)
    return str(folder)


def run(cell, names):
    """Executes a cell and returns the value of its last line, as a notebook shows it."""
    *lines, last = ast.parse("".join(cell["source"])).body
    is_value = isinstance(last, ast.Expr)
    exec(compile(ast.Module(lines if is_value else [*lines, last], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if is_value else None


def run_notebook(name, folder, images, monkeypatch):
    """The namespace at the end and the values of all cells."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setenv("MPLBACKEND", "agg")
    matplotlib.use("agg")
    torch.set_num_threads(1)
    names, shown = {"__name__": "notebook"}, []
    for cell in code_cells(read(name)):
        if is_parameters(cell):
            own = {}
            run(cell, own)
            stand_ins = {**STAND_INS[name], "IMAGES": images}
            assert {key for key in own if key.isupper()} == set(stand_ins)
            names |= stand_ins
        else:
            shown.append(run(cell, names))
    return names, [value for value in shown if value is not None]


def test_a_model_is_audited_cleaned_and_shown_before_and_after(tmp_path, images, monkeypatch, capsys):
    names, shown = run_notebook("audit_and_clean", tmp_path, images, monkeypatch)
    report, maps, both = shown
    assert "<iframe" in report._repr_html_()
    assert isinstance(maps, Image.Image)
    assert maps.width > 500
    assert both is names["both"]
    assert [result.name for result in both.results] == ["teacher", "teacher + adapter"]
    assert len(both.snapshots) == 2
    printed = capsys.readouterr().out
    assert "outliers begin after block 2" in printed
    assert "images, channels, rows, columns: (4, 96, 8, 8)" in printed
    assert float(re.search(r"largest difference after loading: (\S+)", printed)[1]) < 1e-4
    assert (tmp_path / "cleaned" / "adapter_config.json").is_file()


def test_a_student_is_distilled_evaluated_and_shown(tmp_path, images, monkeypatch, capsys):
    _, shown = run_notebook("distil_and_evaluate", tmp_path, images, monkeypatch)
    losses, norms, results, report, *maps = shown
    assert all(isinstance(picture, Image.Image) for picture in (losses, norms, *maps))
    assert len(maps) == 2
    assert "<table" in results._repr_html_()
    assert len(results.main) == 2
    assert "<iframe" in report._repr_html_()
    printed = capsys.readouterr().out
    assert "images, channels, rows, columns: (2, 32, 8, 8)" in printed
    assert re.search(r"^[\d,]+ parameters$", printed, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs_and_opens_in_colab(name):
    notebook = read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code_cells(notebook))
    assert f"/examples/notebooks/{name}.ipynb)" in "".join(notebook["cells"][0]["source"])
    assert sum(map(is_parameters, code_cells(notebook))) == 1
    first = "".join(code_cells(notebook)[0]["source"])
    assert 'if importlib.util.find_spec("singer_hf") is None:' in first
    assert '"pip", "install"' in first


def test_the_links_between_the_notebooks_hold():
    for name in NAMES:
        text = "".join("".join(cell["source"]) for cell in read(name)["cells"])
        for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
            assert (NOTEBOOKS / target).is_file(), target
