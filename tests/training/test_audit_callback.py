import re
import types

import pytest
import torch
from runs import image_dataset, make_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from singer_hf.inspection.measure.audit import outlier_summary
from singer_hf.training.audit_callback import TAG, AuditCallback


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    trainer = make_trainer(
        folder,
        eval_dataset=image_dataset(8),
        eval_strategy="steps",
        eval_steps=4,
        save_steps=2,
        report_to="tensorboard",
        num_artifact_images=0,
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    trainer.add_callback(AuditCallback(trainer, images))
    trainer.train()
    return types.SimpleNamespace(trainer=trainer, folder=folder, images=images)


def audited(run) -> list[dict]:
    return [row for row in run.trainer.state.log_history if "audit_outlier_share" in row]


def test_it_audits_once_at_every_step_with_a_save_or_an_evaluation(run):
    assert [row["step"] for row in audited(run)] == [2, 4]


def test_the_logged_scalars_are_those_of_the_student(run):
    expected = outlier_summary(run.trainer.student, run.images)
    assert {name: audited(run)[-1][f"audit_{name}"] for name in expected} == pytest.approx(expected)


def test_scalars_and_norm_maps_are_in_tensorboard(run):
    events = EventAccumulator(str(next((run.folder / "runs").iterdir())), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/audit_outlier_share")] == [2, 4]
    pictures = events.Images(TAG)
    assert [picture.step for picture in pictures] == [2, 4]
    assert min(pictures[0].width, pictures[0].height) > 100


@pytest.mark.parametrize("name", ["_wandb", "_trackio"])
def test_norm_maps_go_to_other_integrations_that_take_pictures(run, name):
    logged = []
    library = types.SimpleNamespace(log=logged.append, Image=lambda picture: picture)
    integration = types.SimpleNamespace(**{name: library})
    trainer = types.SimpleNamespace(
        runs=run.trainer.runs,
        log=lambda figures: None,
        callback_handler=types.SimpleNamespace(callbacks=[integration]),
    )
    state = types.SimpleNamespace(global_step=7, is_world_process_zero=True)
    AuditCallback(trainer, run.images).on_save(run.trainer.args, state, None)
    assert logged[0][TAG].format == "PNG"


def test_images_are_needed():
    message = "`images` must be pixel values (B, 3, H, W) with B >= 1, got shape (0, 3, 32, 32)"
    with pytest.raises(ValueError, match=re.escape(message)):
        AuditCallback(None, torch.zeros(0, 3, 32, 32))
