"""Measures of artifacts during training, and the running average of the student."""

import shutil

import pytest
import torch
from peft import get_peft_model
from runs import StopAt, adapter, differing, make_resumable, make_trainer, small_student, snapshot
from torch import nn
from zoo import images, tiny, tiny_vit

from singer_hf import SingerDistiller
from singer_hf.artifacts.outliers import outlier_ratio, token_norms
from singer_hf.distillation.artifact_metrics import artifact_metrics
from singer_hf.training.callbacks import EmaCallback
from singer_hf.vit.features import capture_features

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def make(bare=False, layers=(1, 3), **settings):
    torch.manual_seed(0)
    config = adapter(layers_to_transform=list(layers))
    teacher = tiny_vit() if bare else get_peft_model(tiny_vit(), config)
    return SingerDistiller(small_student(patch_size=8), teacher, **settings).train()


def ratio(patch_tokens):
    return outlier_ratio(token_norms(patch_tokens))


def test_artifact_measures_are_means_over_the_distilled_blocks():
    distiller, pixel_values = make(), images()
    measures = artifact_metrics(distiller, pixel_values)
    raw = capture_features(tiny_vit(), pixel_values, [1, 2, 3])
    refined = distiller.refine(raw)
    own = capture_features(distiller.student, pixel_values, [0, 1])
    assert set(measures) == {
        "teacher_outlier_ratio",
        "refined_outlier_ratio",
        "student_outlier_ratio",
        "adapter_leakage",
    }
    mean = {
        "teacher_outlier_ratio": (ratio(raw[1][:, 1:]) + ratio(raw[3][:, 1:])) / 2,
        "refined_outlier_ratio": (ratio(refined[1][:, 1:]) + ratio(refined[3][:, 1:])) / 2,
        "student_outlier_ratio": (ratio(own[0][:, 2:]) + ratio(own[1][:, 2:])) / 2,
    }
    for name, value in mean.items():
        assert measures[name] == pytest.approx(value.item(), rel=1e-5)


def test_adapter_leakage_is_the_change_of_what_the_next_block_writes():
    distiller, pixel_values = make(), images()
    teacher = tiny_vit()
    raw = capture_features(teacher, pixel_values, [1])[1]
    refined = distiller.refine({1: raw, 3: raw})[1]
    with torch.no_grad():
        before, after = ((teacher.layers[2](x) - x)[:, 1:] for x in (raw, refined))
    expected = ((after - before).norm() / before.norm()).item()
    assert artifact_metrics(distiller, pixel_values)["adapter_leakage"] == pytest.approx(expected, rel=1e-4)


def test_an_adapter_that_changes_nothing_leaks_nothing():
    distiller = make()
    for layer in distiller.singer_layers.values():
        nn.init.zeros_(layer.singer_up["default"].weight)
    measures = artifact_metrics(distiller, images())
    assert measures["adapter_leakage"] == pytest.approx(0, abs=1e-6)
    assert measures["refined_outlier_ratio"] == pytest.approx(measures["teacher_outlier_ratio"])


def test_a_bare_teacher_has_no_refined_ratio_and_the_last_block_no_leakage():
    names = {"teacher_outlier_ratio", "student_outlier_ratio"}
    assert set(artifact_metrics(make(bare=True), images())) == names
    assert set(artifact_metrics(make(layers=[3]), images())) == names | {"refined_outlier_ratio"}


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_modes_weights_and_gradients_alone(training):
    distiller = make().train(training)
    before = snapshot(distiller)
    artifact_metrics(distiller, images())
    assert distiller.student.training == training
    assert not distiller.teacher.training
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    assert all(p.grad is None for p in distiller.parameters())


def test_a_students_registers_are_not_counted():
    torch.manual_seed(0)
    distiller = SingerDistiller(tiny("dinov2_registers"), tiny_vit(), teacher_layers=[3])
    own = capture_features(distiller.student, images(), [3])[3]
    measured = artifact_metrics(distiller, images())["student_outlier_ratio"]
    assert measured == pytest.approx(ratio(own[:, 5:]).item(), rel=1e-5)


def test_the_average_starts_as_the_student_and_moves_by_one_minus_decay():
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 1.0)
    ema = EmaCallback(student, decay=0.9)
    expected = 1.0
    for value in (2.0, 3.0):
        nn.init.constant_(student.weight, value)
        ema.on_step_end(None, None, None)
        expected = 0.9 * expected + 0.1 * value
        assert ema.average.weight.item() == pytest.approx(expected)
    assert student.weight.item() == 3.0


def test_the_average_follows_batch_norms_statistics():
    student = nn.BatchNorm1d(2)
    ema = EmaCallback(student, decay=0.5)
    student.running_mean.fill_(4.0)
    student.num_batches_tracked.fill_(6)
    ema.on_step_end(None, None, None)
    assert ema.average.running_mean.tolist() == [2.0, 2.0]


def test_the_adapter_alone_is_trained_while_it_warms_up(tmp_path):
    settings = {"adapter_warmup_steps": 2, "max_steps": 3, "save_strategy": "no", "weight_decay": 0.0}
    trainer = make_trainer(tmp_path, callbacks=[StopAt(2)], **settings)
    before = snapshot(trainer.distiller)
    trainer.train()
    changed = differing(before, snapshot(trainer.distiller))
    changed = {name for name in changed if not name.startswith("target_norms.")}  # statistics of the targets
    assert {name.split(".")[0] for name in changed} == {"teacher"}
    assert all("singer_" in name for name in changed)
    assert len(changed) == 4
    assert trainer.distiller.in_adapter_warmup is False


def test_after_the_warm_up_everything_is_trained_and_a_resumed_run_knows_where_it_stands(tmp_path):
    settings = {"adapter_warmup_steps": 2, "max_steps": 4, "save_steps": 1}
    straight = make_resumable(tmp_path / "straight", **settings)
    straight.train()
    for stopped in (1, 3):
        folder = tmp_path / f"stopped{stopped}"
        shutil.copytree(tmp_path / "straight" / f"checkpoint-{stopped}", folder / f"checkpoint-{stopped}")
        resumed = make_resumable(folder, **settings)
        resumed.train(resume_from_checkpoint=True)
        assert not differing(snapshot(straight.distiller), snapshot(resumed.distiller))
    losses = [row["loss"] for row in straight.state.log_history if "loss" in row]
    kd = [row["kd_loss"] for row in straight.state.log_history if "loss" in row]
    assert [loss > value for loss, value in zip(losses, kd, strict=True)][2:] == [True, True]
    assert losses[0] < losses[2]


def test_a_warm_up_needs_adapters(tmp_path):
    with pytest.raises(
        ValueError,
        match="`adapter_warmup_steps` must be 0 for the method 'fitnet', which trains no new adapter, got 3",
    ):
        make_trainer(tmp_path, bare=True, adapter_warmup_steps=3)
