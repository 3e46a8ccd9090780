"""The arguments of a run: defaults, ranges, and how they are read from a command line."""

import json
import re

import pytest
import torch
import transformers as hf
from runs import QUIET

from singer_hf import SingerTrainingArguments
from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.losses import OUTLIER_LOSSES, TARGET_NORMS
from singer_hf.training.arguments import choose_precision


def test_defaults_are_the_published_schedule_and_the_recommended_objective(tmp_path):
    args = SingerTrainingArguments(output_dir=str(tmp_path), **QUIET)
    assert {name: getattr(args, name) for name in OBJECTIVE} == OBJECTIVE
    assert (args.weight_decay, args.adam_beta1, args.adam_beta2) == (1e-4, 0.9, 0.999)
    assert (args.warmup_steps, args.logging_steps, args.save_steps, args.eval_steps) == (0.05, 0.01, 0.05, 0.05)
    assert (args.save_total_limit, args.bf16, args.tf32) == (2, False, None)
    assert args.optim.value.startswith("adamw")
    assert (args.max_grad_norm, args.color_jitter, args.ema_decay) == (0, 0, None)
    assert args.remove_unused_columns is False
    assert args.logging_nan_inf_filter is False


def test_the_learning_rate_ends_at_a_ten_thousandth_of_its_peak(tmp_path):
    args = SingerTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=512, **QUIET)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    schedule = hf.get_scheduler(
        args.lr_scheduler_type, optimizer, 2, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs
    )
    rates = []
    for _ in range(10):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-7, rel=1e-6)


def test_the_learning_rate_follows_the_square_root_of_the_batch_unless_it_is_given(tmp_path):
    def rate(**settings):
        return SingerTrainingArguments(output_dir=str(tmp_path), **QUIET, **settings).learning_rate

    assert rate(per_device_train_batch_size=512) == 1e-3
    assert rate(per_device_train_batch_size=64, gradient_accumulation_steps=2) == 0.5e-3
    assert rate(per_device_train_batch_size=8, learning_rate=0.01) == 0.01


@pytest.mark.parametrize(
    ("capability", "given", "expected"),
    [
        ((8, 0), (None, None), (True, True)),
        ((7, 5), (None, None), (False, None)),
        ((9, 0), (False, False), (False, False)),
    ],
)
def test_number_formats_are_those_of_the_gpu_unless_they_are_given(monkeypatch, capability, given, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    assert choose_precision(*given) == expected
    assert choose_precision(None, None, use_cpu=True) == (False, None)
    assert choose_precision(None, None, fp16=True)[0] is False
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision(None, None)[0] is False


_BOTH = {"eval_steps": 2, "save_steps": 4}


@pytest.mark.parametrize(
    ("given", "steps"),
    [({}, (0.05, 0.05)), ({"eval_steps": 7}, (7, 7)), ({"save_steps": 9}, (9, 9)), (_BOTH, (2, 4))],
)
def test_the_best_checkpoint_is_one_that_was_evaluated(tmp_path, given, steps):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "metric_for_best_model": "loss"}
    args = SingerTrainingArguments(output_dir=str(tmp_path), **QUIET, **best, **given)
    assert (args.eval_steps, args.save_steps) == steps


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kd_weight", -1.0, "`kd_weight` must be at least 0, got -1.0"),
        ("outlier_weight", -0.5, "`outlier_weight` must be at least 0, got -0.5"),
        ("info_weight", -1.0, "`info_weight` must be at least 0, got -1.0"),
        ("outlier_quantile", 0.0, "`outlier_quantile` must lie in (0, 1), got 0.0"),
        ("info_share", 0.0, "`info_share` must lie in (0, 1], got 0.0; 1 takes all images"),
        ("info_share", 1.5, "`info_share` must lie in (0, 1], got 1.5; 1 takes all images"),
        ("outlier_quantile", 1.5, "`outlier_quantile` must lie in (0, 1), got 1.5"),
        ("target_norm", "layer", f"`target_norm` must be one of {str(TARGET_NORMS)[1:-1]}, got 'layer'"),
        ("kd_loss", "l2", "`kd_loss` must be one of 'mse', 'cosine', 'smooth_l1', got 'l2'"),
        ("outlier_loss", "median", f"`outlier_loss` must be one of {str(OUTLIER_LOSSES)[1:-1]}, got 'median'"),
        ("info_loss", "mse", "`info_loss` must be one of 'gram', 'reference', got 'mse'"),
        ("ema_decay", 1.0, "`ema_decay` must lie in (0, 1), got 1.0; leave it out for no average"),
        ("ema_decay", 0.0, "`ema_decay` must lie in (0, 1), got 0.0; leave it out for no average"),
        ("num_artifact_images", -1, "`num_artifact_images` must be at least 0, got -1"),
        ("color_jitter", -0.1, "`color_jitter` must be at least 0, got -0.1"),
        ("remove_unused_columns", True, "`remove_unused_columns` must be False: the images would be removed"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, name, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SingerTrainingArguments(output_dir=str(tmp_path), **QUIET, **{name: value})


def test_every_argument_can_be_given_on_the_command_line(tmp_path):
    flags = ["--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none"]
    flags += ["--student_layers", "5", "-1", "--teacher_layers", "3", "5", "--ema_decay", "0.99"]
    flags += ["--info_loss", "reference", "--detach_refined", "--color_jitter", "0.4", "--outlier_quantile", "0.9"]
    (args,) = hf.HfArgumentParser(SingerTrainingArguments).parse_args_into_dataclasses(flags)
    assert (args.student_layers, args.teacher_layers) == ([5, -1], [3, 5])
    assert (args.ema_decay, args.info_loss, args.detach_refined) == (0.99, "reference", True)
    assert (args.color_jitter, args.outlier_quantile) == (0.4, 0.9)


def test_arguments_can_be_read_from_a_yaml_file(tmp_path):
    pytest.importorskip("yaml")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nreport_to: none\nstudent_layers: [1, 3]\nkd_weight: 2.0\n"
    )
    (args,) = hf.HfArgumentParser(SingerTrainingArguments).parse_yaml_file(str(file))
    assert (args.student_layers, args.kd_weight) == ([1, 3], 2.0)


def test_every_new_argument_has_a_help_text():
    own = SingerTrainingArguments.__dataclass_fields__.keys() - hf.TrainingArguments.__dataclass_fields__.keys()
    assert len(own) == 22
    assert all(SingerTrainingArguments.__dataclass_fields__[name].metadata["help"] for name in own)


def test_the_hub_token_is_not_written_out(tmp_path):
    args = SingerTrainingArguments(output_dir=str(tmp_path), hub_token="hf_secret", **QUIET)
    assert "hf_secret" not in args.to_json_string()
    assert json.loads(args.to_json_string())["kd_weight"] == 1.0
