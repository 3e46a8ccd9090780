"""The Trainer of an adapter alone: resuming, logs, what it saves, pushes and refuses."""

import json
from pathlib import Path

import pytest
import torch
from cleanings import QUIET, lasting_vit, noise_dataset, planted_processor
from runs import StopAt, differing, files_in, snapshot

from singer_hf import CleaningArguments, SingerConfig
from singer_hf.training.adapter.trainer import AdapterTrainer
from singer_hf.tuner.model import attach_adapter

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def make_trainer(folder, callbacks=(), **settings):
    torch.set_num_threads(1)
    options = {**QUIET, "max_steps": 8, "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 2}
    args = CleaningArguments(output_dir=str(folder), **options | settings)
    teacher = attach_adapter(lasting_vit(), SingerConfig(r=4, layers_to_transform=[1], init_weights="random"))
    return AdapterTrainer(teacher, args, noise_dataset(20), planted_processor(), callbacks=list(callbacks))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("straight"))
    trainer.train()
    trainer.save_model()
    return trainer


def rows(trainer):
    names = ("loss", "outlier_loss", "info_loss", "grad_norm")
    return [{name: row[name] for name in names} for row in trainer.state.log_history if "loss" in row]


def test_every_log_has_both_terms(straight):
    assert len(rows(straight)) == 8
    assert all(
        row["loss"] == pytest.approx(row["outlier_loss"] + row["info_loss"], rel=1e-4) for row in rows(straight)
    )


def test_stopped_and_resumed_equals_straight(straight, tmp_path):
    make_trainer(tmp_path, callbacks=[StopAt(4)]).train()
    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()
    assert rows(resumed) == rows(straight)


def test_a_cut_checkpoint_is_passed_over(tmp_path, caplog):
    make_trainer(tmp_path, callbacks=[StopAt(4)]).train()
    (tmp_path / "checkpoint-4/adapter_model.safetensors").write_bytes(b"cut")
    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert "skipping the incomplete checkpoint" in caplog.text


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    make_trainer(tmp_path, callbacks=[StopAt(4)]).train()
    with pytest.raises(ValueError, match=r"was made with other settings: outlier_weight 1.0 -> 2.0"):
        make_trainer(tmp_path, outlier_weight=2.0).train(resume_from_checkpoint=True)


def test_the_teacher_is_not_saved(straight):
    files = files_in(Path(straight.args.output_dir))
    assert {name for name in files if name.endswith(".safetensors") and "checkpoint" not in name} == {
        "adapter_model.safetensors"
    }
    settings = json.loads((Path(straight.args.output_dir) / "training_args.json").read_text())
    assert (settings["max_steps"], settings["save_total_limit"]) == (8, 2)


def test_only_the_last_two_checkpoints_stay(straight):
    folder = Path(straight.args.output_dir)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e38)
    with pytest.raises(FloatingPointError, match="is not finite"):
        trainer.train()
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_half_precision_trains_the_same_adapter_roughly(straight, tmp_path):
    trainer = make_trainer(tmp_path, bf16=True)
    trainer.train()
    for name, value in trainer.distiller.named_parameters():
        if value.requires_grad:
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, dict(straight.distiller.named_parameters())[name], atol=0.02, rtol=0.1)
