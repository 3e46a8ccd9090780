"""The Python blocks of docs/export.md, from the first to the last, on tiny models in the folders that they name."""

import re

import pytest
from exporting import shortened, with_gate
from printed import ROOT
from transformers import AutoModel
from zoo import SIZES, hf, images

pytest.importorskip("onnxruntime")


def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = hf.Dinov2Config(**{**SIZES, "num_hidden_layers": 1, "image_size": 224, "patch_size": 32})
    hf.Dinov2Model(config).save_pretrained("outputs/run")
    teacher = shortened("vit", 1)
    teacher.config.num_hidden_layers = 1
    teacher.save_pretrained("teacher")
    with_gate(teacher).save_pretrained("outputs/run/singer")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text("utf-8"), re.DOTALL):
        exec(compile(block, "export.md", "exec"), names)
    assert names["last_hidden_state"].shape == (8, 71, 32)
    assert names["feature_map"].shape == (8, 32, 7, 7)
    assert (tmp_path / "cleaned_teacher.onnx").is_file()
    assert AutoModel.from_pretrained("teacher")(images()).last_hidden_state.shape == (2, 17, 32)
