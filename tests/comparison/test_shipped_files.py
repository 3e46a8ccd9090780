"""The comparisons and model configs of the package are complete, and the printed snippet for an unplanted teacher."""

import re
from pathlib import Path

import pytest
import torch
from printed import ROOT
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from singer_hf.baselines.singer import Singer
from singer_hf.comparison.study import read_study
from singer_hf.configs import COMPARISONS, MODELS, TRAINED, shipped_files

CONFIGS = list(shipped_files(COMPARISONS).values())
NEW = ("cifar10_objectives", "cifar10_cleaned", "scenes_objectives", "natural")  # of version 0.2
MODEL_CONFIGS = list(shipped_files(MODELS).values())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_comparison_is_whole(file):
    study = read_study(file)
    assert study.baseline in study.methods
    assert study.student_config in shipped_files(MODELS)
    assert Path(study.output_dir).parts[0] == "outputs"


@pytest.mark.parametrize("file", [file for file in CONFIGS if file.stem not in NEW], ids=lambda path: path.name)
def test_comparisons_of_version_0_1_keep_its_objective_and_refine_every_token(file):
    study = read_study(file)
    assert study.training["target_norm"] == "none"
    entries = [entry for entry in study.methods.values() if isinstance(entry.method, Singer)]
    assert entries
    for entry in entries:
        assert (entry.training["target_norm"], entry.training["outlier_loss"]) == ("none", "absolute"), entry.name
        assert entry.method.adapter["gate"] == "none", entry.name


@pytest.mark.parametrize("file", MODEL_CONFIGS, ids=lambda path: path.name)
def test_every_shipped_model_config_is_one(file):
    assert AutoConfig.from_pretrained(file).hidden_size


def test_the_snippet_that_takes_the_planted_unit_out_does_so(monkeypatch, tmp_path):
    page = (ROOT / "docs" / "results_paper_loss.md").read_text(encoding="utf-8")
    code = re.search(r'python -c "\n(.*?)\n"\n', page, re.DOTALL)[1]
    teacher = tmp_path / "singer_hf" / "demo" / "teacher"
    teacher.parent.mkdir(parents=True)
    teacher.symlink_to(shipped_files(TRAINED)["demo-teacher"])
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert AutoImageProcessor.from_pretrained("outputs/demo_unplanted").size == {"height": 64, "width": 64}
    changed = changed_weights(teacher, tmp_path / "outputs" / "demo_unplanted")
    assert {name.rsplit(".mlp.")[0] for name in changed} == {"layers.2"}


def changed_weights(*folders: Path) -> set[str]:
    before, after = (AutoModel.from_pretrained(folder, add_pooling_layer=False).state_dict() for folder in folders)
    return {name for name, value in before.items() if not torch.equal(value, after[name])}
