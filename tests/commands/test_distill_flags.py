"""The flags of `distill`: recipes, the rank's two names, and flags without a meaning for the method."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from noise_images import noise
from planted import IMAGE, planted_vit
from torch.distributed.run import get_args_parser
from transformers import ViTImageProcessor

from singer_hf.commands import distill
from singer_hf.commands.command_line import CommandParser
from singer_hf.commands.distill_flags import ScriptArguments
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.tuner import SingerConfig

DISTILL = str(Path(__file__).parents[2] / "examples" / "distill.py")


def parse_distill(monkeypatch, *arguments: str):
    required = ["--teacher_name_or_path", "t", "--dataset_name", "d", "--output_dir", "o", "--student_config", "s"]
    file = [arguments[0]] if arguments[0].endswith(".yaml") else []
    monkeypatch.setattr(sys, "argv", [DISTILL, *file, *required, *arguments[len(file) :], "--use_cpu"])
    return distill.parse(sys.argv[1:])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--r", "4"], ("nullspace", None, "gram", 1.0, 0.0)),
        (["--r", "4", "--init_scale", "0.5"], ("nullspace", None, "gram", 1.0, 0.5)),
        (["--info_weight", "3"], ("nullspace", None, "gram", 3.0, 0.0)),
        (["--recipe", "recommended"], ("nullspace", None, "gram", 1.0, 0.0)),
        (["--recipe", "paper"], ("nullspace", None, "gram", 1.0, 1.0)),
        (["--recipe", "reference"], ("reference", 0.05, "reference", 1.0, 1.0)),
        (["--recipe", "reference", "--info_loss", "gram"], ("reference", 0.05, "gram", 1.0, 1.0)),
        (["--null_threshold", "0.2", "--recipe", "reference"], ("reference", 0.2, "reference", 1.0, 1.0)),
    ],
)
def test_a_recipe_sets_what_no_flag_says(arguments, expected, monkeypatch):
    _, args, adapter = parse_distill(monkeypatch, *arguments)
    found = (adapter.init_weights, adapter.null_threshold, args.info_loss, args.info_weight, adapter.init_scale)
    assert found == expected


def test_a_recipe_in_a_yaml_file_gives_way_to_the_file_and_the_flags(tmp_path, monkeypatch):
    file = tmp_path / "run.yaml"
    file.write_text("recipe: reference\nnull_threshold: 0.1\noutlier_weight: 0.5\n")
    _, args, adapter = parse_distill(monkeypatch, str(file), "--outlier_weight", "0.25")
    assert (args.info_loss, adapter.null_threshold, args.outlier_weight) == ("reference", 0.1, 0.25)
    _, args, adapter = parse_distill(monkeypatch, str(file), "--recipe", "paper")
    assert (args.info_loss, adapter.init_weights, args.outlier_weight) == ("gram", "nullspace", 0.5)


def test_null_in_a_file_leaves_a_flag_to_its_default(tmp_path, monkeypatch):
    file = tmp_path / "run.yaml"
    file.write_text("dataset_config: null\nmax_train_samples:\nlayers_to_transform: null\nr: 8\n")
    script, _, adapter = parse_distill(monkeypatch, str(file))
    assert (script.dataset_config, script.max_train_samples, adapter.layers_to_transform) == (None, None, None)
    assert adapter.r == 8


def test_the_rank_has_two_names_of_which_the_last_wins(tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text("r: 8\n")
    assert parse_distill(monkeypatch, "--rank", "4")[2].r == 4
    assert parse_distill(monkeypatch, str(tmp_path / "run.yaml"), "--rank", "4")[2].r == 4


@pytest.mark.parametrize("launcher", [get_args_parser, launch_command_parser])
def test_every_flag_but_r_passes_through_a_launcher(launcher):
    parser, flags = launcher(), CommandParser(ScriptArguments, SingerTrainingArguments, SingerConfig)
    names = {"--config", *(name for action in flags._actions for name in action.option_strings)}
    names -= {"--r", "--help", "-h"}
    assert "--rank" in names
    for name in names:
        assert parser.parse_args(["distill.py", name, "4"]).training_script_args == [name, "4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "fitnet", "--r", "4"], "`--method fitnet` does not use `--r`; leave them out"),
        (["--method", "fitnet", "--rank", "64"], "`--method fitnet` does not use `--r`; leave them out"),
        (
            ["--method", "vitkd", "--init_scale=1", "--info_weight", "1"],
            "`--method vitkd` does not use `--info_weight`, `--init_scale`; leave them out",
        ),
        (["--teacher_layers", "1"], "`--method singer` does not use `--teacher_layers`; leave them out"),
        (["--inference_mode", "true"], "unknown flag `--inference_mode`; "),
        (["--peft_type", "LORA"], "unknown flag `--peft_type`; "),
        (["--label_smoothing_factor", "0.1"], "`label_smoothing_factor` must be left out, got 0.1: it needs labels"),
        (
            ["--teacher_dtype", "half"],
            "`--teacher_dtype` must be one of 'float32', 'bfloat16', 'float16', 'auto', got 'half'",
        ),
        (
            ["--teacher_attn_implementation", "fast"],
            "`--teacher_attn_implementation` must be one of 'eager', 'sdpa', ",
        ),
        (["--compile_teacher", "--torch_compile"], "`compile_teacher` must be left out with `torch_compile`, which "),
        (["--learning_r", "1"], "unknown flag `--learning_r`; did you mean `--learning_rate`?"),
    ],
)
def test_flags_without_a_meaning_are_refused(arguments, message, monkeypatch):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_distill(monkeypatch, *arguments)


def test_other_methods_take_the_flags_that_are_theirs(monkeypatch):
    _, args, _ = parse_distill(monkeypatch, "--method", "fitnet", "--teacher_layers", "1", "--kd_weight", "2")
    assert (args.teacher_layers, args.kd_weight) == ([1], 2.0)


def test_more_prefix_tokens_than_tokens_are_refused_before_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    planted_vit().save_pretrained("teacher")
    ViTImageProcessor(size={"height": IMAGE[0], "width": IMAGE[1]}).save_pretrained("teacher")
    (tmp_path / "images").mkdir()
    for index in range(2):
        noise(index, 32).save(tmp_path / "images" / f"{index}.png")
    names = ["--teacher_name_or_path", "teacher", "--student_name_or_path", "teacher", "--dataset_name", "images"]
    extra = ["--output_dir", "out", "--use_cpu", "--report_to", "none", "--rank", "4", "--num_prefix_tokens", "100"]
    monkeypatch.setattr(sys, "argv", [DISTILL, *names, *extra])
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_path(DISTILL, run_name="__main__")
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: `--num_prefix_tokens` must be less than the 25 tokens of an image, got 100; leave it out for the 1 of "
        "the teacher"
    )
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_teacher_is_audited_distilled_and_named_on_the_card(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    planted_vit().save_pretrained("teacher")
    ViTImageProcessor(size={"height": IMAGE[0], "width": IMAGE[1]}).save_pretrained("teacher")
    (tmp_path / "images").mkdir()
    for index in range(4):
        noise(index, 32).save(tmp_path / "images" / f"{index}.png")
    names = ["--teacher_name_or_path", "teacher", "--student_name_or_path", "teacher", "--dataset_name", "images"]
    form = ["--teacher_dtype", dtype, "--teacher_attn_implementation", "eager", "--info_share", "0.5"]
    run = ["--output_dir", "out", "--use_cpu", "--report_to", "none", "--rank", "4", "--max_steps", "1"]
    distill.main([*names, *form, *run])
    assert f"| `teacher dtype` | `{dtype}` |" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "training_args.json").read_text())["info_share"] == 0.5
