"""The comparisons and teachers printed in README and docs: their commands parse and their files are complete."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from printed import PAGES, ROOT, bash_commands
from transformers import AutoConfig, AutoImageProcessor, AutoModel, HfArgumentParser

from singer_hf.baselines.singer import Singer
from singer_hf.commands import compare
from singer_hf.comparison.study import read_study
from singer_hf.configs import COMPARISONS, MODELS, TRAINED, shipped_files
from singer_hf.demo.teacher_settings import TeacherArguments, TeacherSettings

CONFIGS = list(shipped_files(COMPARISONS).values())
COMPARE, TRAIN = "singer-hf compare", "python examples/train_teacher.py"
NEW = ("cifar10_objectives", "cifar10_cleaned", "scenes_objectives", "natural")  # of version 0.2
MODEL_CONFIGS = list(shipped_files(MODELS).values())


def printed(start: str) -> list[str]:
    commands = {command for page in PAGES for command in bash_commands(page.read_text())}
    return sorted(command for command in commands if command.startswith(f"{start} "))


def arguments(command: str, start: str) -> list[str]:
    return shlex.split(command.removeprefix(start))


def test_there_are_commands_to_check():
    assert len(printed(COMPARE)) > 3
    assert printed(TRAIN)


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


@pytest.mark.parametrize("command", printed(COMPARE))
def test_every_printed_comparison_parses(command):
    words = arguments(command, COMPARE)
    study, num_processes = compare.parse(words)
    assert study.methods
    assert num_processes >= 1


@pytest.mark.parametrize("command", printed(TRAIN))
def test_every_printed_teacher_parses(command, monkeypatch, tmp_path):
    words = [*arguments(command, TRAIN), "--use_cpu", "--output_dir", str(tmp_path)]
    settings, _ = HfArgumentParser([TeacherSettings, TeacherArguments]).parse_args_into_dataclasses(words)
    assert settings.teacher_config is None or settings.teacher_config in shipped_files(MODELS)


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
