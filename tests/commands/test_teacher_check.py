"""The audit before a distillation: which method it chooses, what it says, and which flags leave it out."""

import sys

import pytest
from planted import planted_images, planted_vit
from zoo import images, tiny_vit

from singer_hf.commands import distill
from singer_hf.commands.teacher_check import choose_method

FLAGS = ["--teacher_name_or_path", "t", "--dataset_name", "d", "--student_config", "s", "--use_cpu"]


def test_a_teacher_with_artifacts_is_refined(monkeypatch):
    method, report = choose_method(planted_vit(), [planted_images(batch=4)], "teacher")
    assert method == "singer"
    assert report.startswith("audit of the teacher on 4 training images: teacher has ")
    assert report.splitlines()[-2:] == [
        "  chosen: its outliers are refined (SiNGER); `--method` overrides this",
        "  12 % of the patches are many: a teacher that `singer-hf clean` cleaned before gave better students; "
        "distil it with `--adapter_name_or_path`",
    ]
    monkeypatch.setattr("singer_hf.commands.teacher_check.MANY_ARTIFACTS", 0.13)
    assert choose_method(planted_vit(), [planted_images(batch=4)], "teacher")[1] in report


def test_a_teacher_without_artifacts_is_distilled_as_it_is():
    method, report = choose_method(tiny_vit(), [images()], "teacher")
    assert method == "fitnet"
    assert "there is nothing to refine, it is distilled as it is, without an adapter (FitNet)" in report


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ([], None),
        (["--target_norm", "channel"], None),
        (["--recipe", "paper"], "singer"),
        (["--rank", "4"], "singer"),
        (["--outlier_weight", "2"], "singer"),
        (["--method", "fitnet"], "fitnet"),
    ],
)
def test_flags_of_singer_choose_it_without_an_audit(flags, method, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["distill.py", *FLAGS, *flags])
    assert distill.parse(sys.argv[1:])[0].method == method
