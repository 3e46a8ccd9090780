"""The command printed in README runs, on stand-ins for what it would download, and so do its variants."""

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
from planted import IMAGE, PATCH, planted_vit
from printed import ROOT, bash_commands
from transformers import AutoModel, Dinov2Config, Dinov2Model, ViTImageProcessor

from singer_hf.commands import distill
from singer_hf.configs import RUNS, shipped_files
from singer_hf.vit.loading import model_from_config

START = re.compile(r"^(?:singer-hf distill|accelerate launch .*examples/distill\.py) (?=-)")
DISTILL = str(ROOT / "examples" / "distill.py")
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A working folder in which the printed names exist: a tiny teacher, a student config, ten images."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2)).save_pretrained("facebook/dinov2-large")
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained("facebook/dinov2-large")
    config = {"model_type": "vit", "intermediate_size": 32, **SMALL, "hidden_size": 16}
    for name in ("vit-small-patch14", "vit-tiny-patch16"):
        Path(name).write_text(json.dumps(config))  # a path wins over the name
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
    return shlex.split(START.split(command)[1])


@pytest.mark.parametrize("config", shipped_files(RUNS))
def test_every_config_parses_and_names_a_student_that_exists(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", [DISTILL, "--config", config, "--use_cpu"])
    script, args, adapter = distill.parse(sys.argv[1:])
    paper = config != "dinov2-l_to_vit-s"
    assert args.learning_rate == (1e-3 if paper else 1e-3 * (64 / 512) ** 0.5)  # one process
    weights = (args.outlier_quantile, args.outlier_weight, args.info_weight)
    assert (adapter.r, weights) == (None, (0.97, 0.01 if paper else 1.0, 1.0))
    own = (adapter.init_scale, adapter.gate, args.target_norm, args.outlier_loss)
    assert own == ((1.0, "none", "none", "absolute") if paper else (0.0, "outlier", "channel_token", "neighbors"))
    assert AutoModel.from_config(model_from_config(script.student_config[0]).config)


def test_flags_behind_a_yaml_file_win_over_it(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", [DISTILL, "vit-l_to_vit-t", "--r", "16", "--dataset_name", "elsewhere", "--use_cpu"]
    )
    script, _, adapter = distill.parse(sys.argv[1:])
    assert (script.dataset_name, adapter.r) == ("elsewhere", 16)


def test_the_readme_command_leaves_a_plain_student(stand_ins, monkeypatch, capsys):
    readme = bash_commands((ROOT / "README.md").read_text())
    command = next(c for c in readme if START.search(c))
    extra = ["--max_steps", "1", "--r", "4", "--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "4"]
    run_script(DISTILL, [*script_arguments(command), *extra], monkeypatch)
    plan = capsys.readouterr().out
    assert "student block 2 -> teacher block 2" in plan
    assert "adapter after block 3: r 4, effective null dimension" in plan
    assert AutoModel.from_pretrained("outputs/student").config.hidden_size == 16
    assert Path("outputs/student/singer/adapter_model.safetensors").is_file()
    card = Path("outputs/student/README.md").read_text()
    assert "facebook/dinov2-large" in card or "`dinov2-large`" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student_config", "x", "--student_name_or_path", "y"], "give exactly one of `--student_name_or_path`"),
        (
            ["--student_config", "x", "--method", "magic"],
            "`method` must be one of singer, cleaned, fitnet, vitkd, relational, test_time_register, clip_norm, "
            "neighbor, mean_outlier, local_outlier_factor, singular_direction, shifted_views, got 'magic'",
        ),
        (["--student_config", "x", "--outlier_quantile", "1.5"], "`outlier_quantile` must lie in (0, 1), got 1.5"),
        (
            ["--student_config", "x", "--recipe", "magic"],
            "`recipe` must be one of 'paper', 'reference', 'recommended', got 'magic'",
        ),
        (
            ["--student_config", "x", "--recipe", "paper", "--method", "fitnet"],
            "`--recipe` has settings of SiNGER; leave it out with `--method fitnet`",
        ),
        (
            ["--student_config", "x", "--method_settings", '{"quantile": 0.9}'],
            "`--method_settings` must be left out with `--method singer`, whose settings are flags of their own, got "
            "'{\"quantile\": 0.9}'",
        ),
        (
            ["--student_config", "x", "--method", "clip_norm", "--method_settings", '{"num_neurons": 2}'],
            "clip_norm does not take the settings ['num_neurons']; it takes ['mad_factor', 'quantile', 'scope']",
        ),
        (
            ["--student_config", "x", "--method", "clip_norm", "--method_settings", '{"quantile": 1.5}'],
            "`quantile` must lie in (0, 1), got 1.5",
        ),
        (
            ["--student_config", "x", "--method", "test_time_register", "--method_settings", '{"num_neurons": 0}'],
            "`num_neurons` must be at least 1, got 0",
        ),
        (
            ["--student_config", "x", "--method", "neighbor", "--method_settings", "scope=batch"],
            "`--method_settings` must be JSON, got 'scope=batch': ",
        ),
        (
            ["--student_config", "x", "--method", "neighbor", "--method_settings", "[1]"],
            "`--method_settings` must be settings by name, got '[1]'",
        ),
    ],
)
def test_bad_flags_are_refused_before_anything_is_loaded(arguments, message, monkeypatch, capsys):
    required = ["--teacher_name_or_path", "t", "--dataset_name", "d", "--output_dir", "o"]
    with pytest.raises(SystemExit, match=r"^2$"):
        run_script(DISTILL, [*required, *arguments], monkeypatch)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


@pytest.fixture
def planted_stand_ins(tmp_path, monkeypatch):
    """A teacher with tokens of very high norm and a student of its shape, in a working folder with images."""
    monkeypatch.chdir(tmp_path)
    planted_vit().save_pretrained("teacher")
    ViTImageProcessor(size={"height": IMAGE[0], "width": IMAGE[1]}).save_pretrained("teacher")
    sizes = {**SMALL, "hidden_size": 16, "image_size": list(IMAGE), "patch_size": PATCH}
    Path("student.json").write_text(json.dumps({"model_type": "vit", "intermediate_size": 32, **sizes}))
    Path("images").mkdir()
    for index in range(4):
        Image.fromarray(np.full((32, 48, 3), 40 * index, dtype=np.uint8)).save(f"images/{index}.png")


@pytest.mark.parametrize(
    ("flags", "plan", "card"),
    [
        (["fitnet"], "(FitNet), no refinement", "features of several blocks (FitNet)"),
        (["vitkd"], "ViTKD, no refinement: teacher blocks [0, 1] mimicked", " with ViTKD ("),
        (
            ["clip_norm", "--method_settings", '{"quantile": 0.75}'],
            "targets refined by ClipNorm(num_prefix_tokens=1, quantile=0.75",
            "| `quantile` | `0.75` |",
        ),
        (
            ["neighbor", "--method_settings", '{"mad_factor": 5, "scope": "batch"}'],
            "targets refined by NeighborMean(num_prefix_tokens=1, grid=(4, 6)",
            "refined by the method `neighbor`",
        ),
        (
            ["test_time_register", "--num_calibration_images", "2"],
            "targets refined by a test-time register of 1 neuron(s) in block 1",
            "refined by a test-time register (",
        ),
        (
            ["mean_outlier", "--num_calibration_images", "2"],
            "targets refined by ConstantOutliers(num_prefix_tokens=1",
            "refined by the method `mean_outlier`",
        ),
        (
            ["local_outlier_factor", "--method_settings", '{"share": 0.1}'],
            "LocalOutlierMean(num_prefix_tokens=1, grid=(4, 6), num_neighbors=30, share=0.1)",
            "| `share` | `0.1` |",
        ),
        (
            ["singular_direction"],
            "ProjectedOutliers(num_prefix_tokens=1, rule=SigmaRule(sigma=4.0), scope='image')",
            "refined by the method `singular_direction`",
        ),
        (
            ["shifted_views", "--method_settings", '{"num_views": 3}'],
            "targets averaged over 3 views of the image",
            "over shifted views of the image",
        ),
        (["relational"], "relational distillation of patch similarities", "the similarities between the patches"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_method_leaves_a_student_and_a_card_that_names_it(
    flags, plan, card, planted_stand_ins, monkeypatch, capsys
):
    names = ["--teacher_name_or_path", "teacher", "--student_config", "student.json", "--dataset_name", "images"]
    extra = ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "2"]
    run_script(DISTILL, [*names, "--output_dir", "out", "--method", *flags, *extra], monkeypatch)
    assert plan in capsys.readouterr().out
    assert AutoModel.from_pretrained("out").config.hidden_size == 16
    assert card in Path("out/README.md").read_text()
    assert not Path("out/singer").exists()


@pytest.mark.usefixtures("planted_stand_ins")
def test_a_run_without_a_method_says_what_it_saw_and_follows_it(monkeypatch, capsys):
    names = ["--teacher_name_or_path", "teacher", "--student_config", "student.json", "--dataset_name", "images"]
    extra = ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "2"]
    run_script(DISTILL, [*names, "--output_dir", "out", *extra], monkeypatch)
    printed = capsys.readouterr().out
    assert "chosen: its outliers are refined (SiNGER); `--method` overrides this" in printed
    assert "method: SiNGER" in printed
    assert Path("out/singer/adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("planted_stand_ins")
def test_several_students_share_a_run_and_each_says_where_it_lies(monkeypatch, capsys):
    Path("wide.json").write_text(Path("student.json").read_text().replace('"hidden_size": 16', '"hidden_size": 24'))
    names = ["--teacher_name_or_path", "teacher", "--student_config", "student.json", "wide.json"]
    extra = ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "2"]
    run_script(DISTILL, [*names, "--dataset_name", "images", "--output_dir", "out", *extra], monkeypatch)
    printed = capsys.readouterr().out
    for name, width in (("student", 16), ("wide", 24)):
        assert AutoModel.from_pretrained(f"out/{name}").config.hidden_size == width
        assert f'AutoModel.from_pretrained("out/{name}", add_pooling_layer=False)' in printed


@pytest.mark.usefixtures("planted_stand_ins")
def test_two_students_of_one_name_are_refused(monkeypatch, capsys):
    names = ["--teacher_name_or_path", "teacher", "--dataset_name", "images", "--output_dir", "out", "--use_cpu"]
    with pytest.raises(SystemExit):
        run_script(DISTILL, [*names, "--student_config", "student.json", "./student.json"], monkeypatch)
    message = "error: `--student_config` must have another name for every student, got ['student', 'student']"
    assert message in capsys.readouterr().err
