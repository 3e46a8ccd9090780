"""The commands and snippets printed in README and docs run, on stand-ins for what they would download."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, Dinov2Config, Dinov2Model, ViTImageProcessor

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DISTILL = str(ROOT / "examples" / "distill.py")
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def bash_commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("#")[0].split()) for line in lines if line.split("#")[0].strip()]


def distill_commands() -> list[str]:
    commands = {command for page in PAGES for command in bash_commands(page.read_text())}
    return sorted(c for c in commands if "examples/distill.py " in c and "..." not in c and "pip install" not in c)


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A working folder in which the printed names exist: a tiny teacher, a student config, ten images."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2)).save_pretrained("facebook/dinov2-large")
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained("facebook/dinov2-large")
    config = {"model_type": "vit", "intermediate_size": 32, **SMALL, "hidden_size": 16}
    for name in ("vit-small-patch14", "vit-tiny-patch16"):
        path = Path(f"examples/configs/students/{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    images = Path("path/to/images/train")
    images.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(8):
        pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    return tmp_path


def run_script(script: str, arguments: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")


def script_arguments(command: str) -> list[str]:
    words = shlex.split(command)
    return words[words.index("examples/distill.py") + 1 :]


def test_there_are_commands_to_check():
    assert any("--teacher_name_or_path facebook/dinov2-large" in command for command in distill_commands())


@pytest.mark.parametrize("command", distill_commands())
def test_every_printed_distillation_command_parses(command, monkeypatch):
    arguments = script_arguments(command)
    if arguments[0].endswith(".yaml"):
        arguments[0] = str(ROOT / arguments[0])
    monkeypatch.setattr(sys, "argv", [DISTILL, *arguments, "--use_cpu"])
    script = runpy.run_path(DISTILL)
    parsed = script["parse"]()
    assert parsed[0].teacher_name_or_path


@pytest.mark.parametrize("config", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_parses_and_names_a_student_that_exists(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", [DISTILL, str(config), "--use_cpu"])
    script, args, adapter = runpy.run_path(DISTILL)["parse"]()
    assert args.learning_rate == 1e-3
    assert (adapter.r, args.outlier_quantile, args.outlier_weight, args.info_weight) == (64, 0.97, 0.01, 1.0)
    assert AutoModel.from_config(runpy.run_path(DISTILL)["model_from_config"](ROOT / script.student_config).config)


def test_flags_behind_a_yaml_file_win_over_it(monkeypatch):
    config = str(ROOT / "examples" / "configs" / "vit-l_to_vit-t.yaml")
    monkeypatch.setattr(sys, "argv", [DISTILL, config, "--r", "16", "--dataset_name", "elsewhere", "--use_cpu"])
    script, _, adapter = runpy.run_path(DISTILL)["parse"]()
    assert (script.dataset_name, adapter.r) == ("elsewhere", 16)


def test_the_readme_command_leaves_a_plain_student(stand_ins, monkeypatch, capsys):
    readme = bash_commands((ROOT / "README.md").read_text())
    command = next(c for c in readme if "--teacher_name_or_path" in c)
    extra = ["--max_steps", "1", "--r", "4", "--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "4"]
    run_script(DISTILL, [*script_arguments(command), *extra], monkeypatch)
    plan = capsys.readouterr().out
    assert "student block 2 -> teacher block 2" in plan
    assert "adapter behind block 3: r 4, effective null dimension" in plan
    assert AutoModel.from_pretrained("outputs/student").config.hidden_size == 16
    assert Path("outputs/student/singer/adapter_model.safetensors").is_file()
    card = Path("outputs/student/README.md").read_text()
    assert "facebook/dinov2-large" in card or "`dinov2-large`" in card


def test_the_python_snippet_of_the_readme_runs(stand_ins, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    snippet = next(
        block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "trainer.train()" in block
    )
    snippet = snippet.replace("hidden_size=384, num_attention_heads=6, intermediate_size=1536", _config_arguments())
    snippet = snippet.replace("num_train_epochs=100", "max_steps=1, use_cpu=True, report_to='none'").replace(
        "r=64", "r=4"
    )
    exec(compile(snippet, "README.md", "exec"), {})
    assert Path("student/model.safetensors").is_file()


def _config_arguments() -> str:
    values = {**SMALL, "hidden_size": 16, "intermediate_size": 32}
    return ", ".join(f"{name}={value}" for name, value in values.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student_config", "x", "--student_name_or_path", "y"], "give exactly one of `--student_name_or_path`"),
        (["--student_config", "x", "--method", "magic"], "`--method` must be singer or fitnet, got 'magic'"),
        (["--student_config", "x", "--outlier_quantile", "1.5"], "`outlier_quantile` must lie in (0, 1), got 1.5"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_loaded(arguments, message, monkeypatch):
    required = ["--teacher_name_or_path", "t", "--dataset_name", "d", "--output_dir", "o"]
    with pytest.raises(ValueError, match=re.escape(message)):
        run_script(DISTILL, [*required, *arguments], monkeypatch)
