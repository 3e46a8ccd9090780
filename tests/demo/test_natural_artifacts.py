"""The script of docs/natural_artifacts.md: two teachers in one call, resumed by a second one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from printed import ROOT, bash_commands
from tiny_study import STUDENT

from singer_hf.comparison.study import read_study
from singer_hf.configs import COMPARISONS, shipped_files
from singer_hf.demo.artifact_log import NAMES
from singer_hf.vit.loading import load_config

SCRIPT = "benchmarks/natural_artifacts.sh"


def call(folder: Path) -> str:
    """Runs the script with a tiny teacher; what it printed."""
    config = folder / "config.json"
    config.write_text(json.dumps({**STUDENT, "num_hidden_layers": 2, "intermediate_size": 33}))
    flags = ("--max_steps", 4, "--per_device_train_batch_size", 8, "--save_steps", 2, "--max_test_samples", 8)
    small = ("--teacher_config", config, "--bf16", False, "--torch_compile", False, "--use_cpu", "--report_to", "none")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "OUTPUT": str(folder / "natural"), "PATH": path}
    command = ["bash", SCRIPT, *map(str, (*flags, *small, "--saved_scenes", 8, "--artifact_log_steps", 2))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_trains_the_pair_and_a_second_call_resumes_what_is_missing(tmp_path):
    call(tmp_path)
    told = {
        name: json.loads((tmp_path / "natural" / name / "teacher.json").read_text()) for name in ("mixed", "plain")
    }
    assert "--mixup_alpha" in told["mixed"]["command"]
    assert "--mixup_alpha" not in told["plain"]["command"]
    assert set(told["mixed"]["artifacts"][-1]) == {"step", "image_views", *NAMES}
    assert (tmp_path / "natural" / "mixed" / "scenes" / "dataset_dict.json").is_file()
    (tmp_path / "natural" / "plain" / "teacher.json").unlink()
    assert f"{tmp_path / 'natural' / 'mixed'} is finished" in call(tmp_path)
    again = json.loads((tmp_path / "natural" / "plain" / "teacher.json").read_text())
    assert "--resume" in again["command"]
    assert again["artifacts"] == told["plain"]["artifacts"]


def test_the_page_prints_the_script_and_its_files_fit_together():
    commands = bash_commands((ROOT / "docs" / "natural_artifacts.md").read_text(encoding="utf-8"))
    assert f"bash {SCRIPT}" in commands
    script = (ROOT / SCRIPT).read_text(encoding="utf-8")
    config = "vit-small-patch16-224"
    assert config in script
    assert any(config in command and "--mixup_alpha 0.8 --cutmix_alpha 1.0" in command for command in commands)
    assert load_config(config).image_size == 224
    study = read_study(shipped_files(COMPARISONS)["natural"])
    assert study.teacher_name_or_path == "outputs/natural/mixed/unplanted"
    assert study.dataset_name == "outputs/natural/mixed/scenes"
