"""The example of README runs as it is printed."""

import re

import numpy as np
import torch
from cleanings import lasting_vit, planted_processor
from peft import PeftModel
from PIL import Image
from planted import GRID, IMAGE, planted_images
from printed import ROOT
from transformers import AutoModel


def test_the_example_cleans_extracts_and_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lasting_vit().save_pretrained("teacher")
    planted_processor().save_pretrained("teacher")
    (tmp_path / "path/to/images").mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (170, *IMAGE, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"path/to/images/{number}.png")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = [
        text
        for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if 'PeftModel.from_pretrained(teacher, "cleaned")' in text
    ]
    names = {"teacher": "teacher", "images": planted_images(2)}
    *lines, last = example.strip().splitlines()
    exec("\n".join(lines).replace('output_dir="cleaned"', 'output_dir="cleaned", max_steps=20, use_cpu=True'), names)
    assert names["maps"].shape == (2, 32, *GRID)
    trained = names["cleaned_teacher"]
    names["teacher"] = AutoModel.from_pretrained("teacher", add_pooling_layer=False)
    exec(last, names)
    assert isinstance(names["cleaned_teacher"], PeftModel)
    with torch.no_grad():
        both = [model.eval()(planted_images(2)).last_hidden_state for model in (trained, names["cleaned_teacher"])]
    assert torch.equal(*both)
