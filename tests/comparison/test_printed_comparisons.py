"""The comparisons and teachers printed in README and docs: their commands parse and their files are complete."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from printed import PAGES, ROOT, bash_commands
from transformers import AutoConfig, AutoImageProcessor, AutoModel, HfArgumentParser

from singer_hf.baselines.singer import Singer
from singer_hf.commands import compare
from singer_hf.comparison.study import read_study
from singer_hf.demo.teacher_settings import TeacherArguments, TeacherSettings

CONFIGS = sorted((ROOT / "examples" / "configs" / "compare").glob("*.yaml"))
NEW = ("cifar10_objectives", "scenes_objectives", "natural")  # of version 0.2
MODELS = sorted((ROOT / "examples" / "configs").glob("*/*.json"))


def printed(script: str) -> list[str]:
    commands = {command for page in PAGES for command in bash_commands(page.read_text())}
    return sorted(command for command in commands if f"examples/{script} " in command)


def arguments(command: str, script: str) -> list[str]:
    words = shlex.split(command)
    return words[words.index(f"examples/{script}") + 1 :]


def test_there_are_commands_to_check():
    assert len(printed("compare.py")) > 3
    assert printed("train_teacher.py")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_comparison_is_whole(file):
    study = read_study(file)
    assert study.baseline in study.methods
    assert (ROOT / study.student_config).is_file()
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


@pytest.mark.parametrize("file", MODELS, ids=lambda path: path.name)
def test_every_shipped_model_config_is_one(file):
    assert AutoConfig.from_pretrained(file).hidden_size


@pytest.mark.parametrize("command", printed("compare.py"))
def test_every_printed_comparison_parses(command, monkeypatch):
    words = arguments(command, "compare.py")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    study, num_processes = compare.parse()
    assert study.methods
    assert num_processes >= 1


@pytest.mark.parametrize("command", printed("train_teacher.py"))
def test_every_printed_teacher_parses(command, monkeypatch, tmp_path):
    words = [*arguments(command, "train_teacher.py"), "--use_cpu", "--output_dir", str(tmp_path)]
    settings, _ = HfArgumentParser([TeacherSettings, TeacherArguments]).parse_args_into_dataclasses(words)
    assert settings.teacher_config is None or (ROOT / settings.teacher_config).is_file()


def test_the_snippet_that_takes_the_planted_unit_out_does_so(monkeypatch, tmp_path):
    page = (ROOT / "docs" / "results_paper_loss.md").read_text(encoding="utf-8")
    code = re.search(r'python -c "\n(.*?)\n"\n', page, re.DOTALL)[1]
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "demo_teacher").symlink_to(ROOT / "examples" / "demo_teacher")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert AutoImageProcessor.from_pretrained("outputs/demo_unplanted").size == {"height": 64, "width": 64}
    changed = changed_weights(tmp_path / "examples" / "demo_teacher", tmp_path / "outputs" / "demo_unplanted")
    assert {name.rsplit(".mlp.")[0] for name in changed} == {"layers.2"}


def changed_weights(*folders: Path) -> set[str]:
    before, after = (AutoModel.from_pretrained(folder, add_pooling_layer=False).state_dict() for folder in folders)
    return {name for name, value in before.items() if not torch.equal(value, after[name])}
