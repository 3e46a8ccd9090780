"""Runs from a cleaned teacher: what is trained and saved, resuming, the card, adapters that do not belong to a run."""

import json
import re
from pathlib import Path

import pytest
import torch
from adapters import attach
from peft import PeftModel
from runs import (
    FIGURES,
    SAVED,
    StopAt,
    differing,
    files_in,
    make_resumable,
    make_trainer,
    snapshot,
)
from zoo import images, tiny_vit

from singer_hf.baselines.cleaned import Cleaned
from singer_hf.baselines.method_table import make_method
from singer_hf.cards.student_card import student_card
from singer_hf.distillation.adapter.inline_distiller import InlineDistiller
from singer_hf.distillation.distiller import SingerDistiller
from singer_hf.training.guards.settings import run_settings
from singer_hf.training.run_card import card_info
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.vit.features import capture_features

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

MODES = pytest.mark.parametrize("train_adapter", [False, True], ids=["frozen", "trained on"])


def save_cleaned(folder, gate="none", factor=1.0):
    """Saves an adapter of the runs' teacher behind block 1, its weights times a factor; returns the folder."""
    model = attach(tiny_vit(), layers_to_transform=[1], gate=gate)
    with torch.no_grad():
        model.base_model.singer_layers[1].singer_up["default"].weight.mul_(factor)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return save_cleaned(tmp_path_factory.mktemp("jane-doe") / "cleaned")


def cleaned_run(folder, adapter, train_adapter=False, make=make_trainer, **options):
    method = Cleaned(adapter, train_adapter)
    return make(folder, bare=True, method=method, teacher_model=method.prepare(tiny_vit()), **options)


def adapter_state(model):
    return {name: value for name, value in snapshot(model).items() if "singer_" in name}


@MODES
def test_a_run_trains_what_it_says_and_saves_the_refined_teacher(adapter, tmp_path, train_adapter):
    trainer = cleaned_run(tmp_path, adapter, train_adapter)
    before = adapter_state(trainer.distiller.teacher)
    trainer.train()
    trainer.save_model()
    after = adapter_state(trainer.distiller.teacher)
    assert differing(before, after) == (set(before) if train_adapter else set())
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    weights = [p for layer in trainer.distiller.singer_layers.values() for p in layer.adapter_parameters()]
    assert [id(p) in held for p in weights] == [train_adapter] * 2
    saved = {file for file in files_in(tmp_path) if not file.startswith("checkpoint-")}
    assert saved == SAVED | FIGURES
    again = PeftModel.from_pretrained(tiny_vit(), tmp_path / "singer")
    assert differing(adapter_state(again), after) == set()
    with torch.no_grad():
        expected = capture_features(trainer.distiller.teacher, images(), [3])[3]
        assert torch.equal(capture_features(again, images(), [3])[3], expected)


def test_the_log_has_the_terms_of_an_adapter_that_is_trained(adapter, tmp_path):
    def names(train_adapter):
        trainer = cleaned_run(tmp_path / str(train_adapter), adapter, train_adapter, num_artifact_images=4)
        trainer.train()
        return set(next(row for row in trainer.state.log_history if "loss" in row))

    ratios = {"teacher_outlier_ratio", "refined_outlier_ratio", "student_outlier_ratio", "adapter_leakage"}
    frozen = names(False)
    assert ratios | {"kd_loss"} <= frozen
    assert names(True) - frozen == {"outlier_loss", "info_loss"}


@MODES
def test_stopped_and_resumed_equals_straight(adapter, tmp_path, train_adapter):
    options = {"train_adapter": train_adapter, "make": make_resumable, "max_steps": 4}
    straight = cleaned_run(tmp_path / "straight", adapter, **options)
    straight.train()
    cleaned_run(tmp_path / "stopped", adapter, **options, callbacks=[StopAt(2)]).train()
    resumed = cleaned_run(tmp_path / "stopped", adapter, **options)
    resumed.train(resume_from_checkpoint=True)
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()
    assert [p.requires_grad for p in resumed.distiller.parameters()] == [
        p.requires_grad for p in straight.distiller.parameters()
    ]
    losses = [[row["loss"] for row in run.state.log_history if "loss" in row] for run in (resumed, straight)]
    assert losses[0] == losses[1]


def test_a_gate_that_is_trained_on_is_resumed_too(tmp_path):
    adapter = save_cleaned(tmp_path / "gated", gate="outlier")
    straight, resumed = (
        cleaned_run(tmp_path / name, adapter, True, make_resumable, max_steps=2) for name in ("straight", "resumed")
    )
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    (layer,) = resumed.distiller.singer_layers.values()
    assert int(layer.singer_gate["default"].num_batches) == 2
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()


def test_a_run_is_resumed_with_its_own_adapter_only_wherever_that_is(adapter, tmp_path):
    cleaned_run(tmp_path / "run", adapter, make=make_resumable, max_steps=2).train()
    moved = save_cleaned(tmp_path / "moved")
    same = cleaned_run(tmp_path / "run", moved, make=make_resumable, max_steps=2)
    same.train(resume_from_checkpoint=True)
    other = cleaned_run(
        tmp_path / "run", save_cleaned(tmp_path / "other", factor=2.0), make=make_resumable, max_steps=2
    )
    with pytest.raises(ValueError, match=r"with other settings: method\.initial_adapter '\w{16}' -> '\w{16}'\. Take"):
        other.train(resume_from_checkpoint=True)
    on = cleaned_run(tmp_path / "run", adapter, True, make=make_resumable, max_steps=2)
    with pytest.raises(ValueError, match=r"with other settings: method\.train_adapter False -> True\. Take"):
        on.train(resume_from_checkpoint=True)


def test_what_a_run_writes_names_no_folder(adapter, tmp_path):
    trainer = cleaned_run(tmp_path / "out", adapter, max_steps=2)
    trainer.train()
    assert "jane-doe" in adapter
    for file in (tmp_path / "out").rglob("*"):
        if file.suffix in (".json", ".md"):
            assert "jane-doe" not in file.read_text(encoding="utf-8"), file


@MODES
def test_the_card_says_which_adapter_and_what_became_of_it(adapter, tmp_path, train_adapter):
    trainer = cleaned_run(tmp_path, adapter, train_adapter, outlier_weight=0.25)
    info = card_info(trainer, tmp_path)
    card = student_card(info)
    fate = "went on being trained beside the student." if train_adapter else "was not trained any further."
    assert f"and the student learned the features of this refined teacher. The adapter {fate}" in card.text
    assert card.data.tags[-1] == "singer"
    assert info.has_adapter
    assert "| `adapter` | `cleaned` |" in card.text
    assert "| `adapter blocks` | `[1]` |" in card.text
    assert f"| `train_adapter` | `{train_adapter}` |" in card.text
    assert info.settings.get("outlier_weight") == (0.25 if train_adapter else None)


@MODES
def test_the_summary_says_what_is_done(adapter, tmp_path, train_adapter):
    summary = cleaned_run(tmp_path, adapter, train_adapter).describe()
    fate = "trained along" if train_adapter else "frozen"
    assert summary.startswith(
        f"method: multi-layer feature distillation of a cleaned teacher, adapter {fate}\nteacher: ViTModel, 4 blocks"
    )
    assert "\n  adapter cleaned behind block(s) 1, read by all later blocks\n" in summary


def test_a_teacher_that_carries_its_adapter_is_taken_as_it_is(tmp_path):
    teacher = attach(tiny_vit(), layers_to_transform=[1])
    method = Cleaned()
    assert method.prepare(teacher) is teacher
    trainer = make_trainer(tmp_path, bare=True, teacher_model=teacher, method=method)
    assert isinstance(trainer.distiller, InlineDistiller)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert card_info(trainer, tmp_path).settings["adapter"] == "default"
    assert isinstance(make_trainer(tmp_path, bare=True, teacher_model=teacher).distiller, SingerDistiller)


def refuse(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_teachers_with_none_or_two_adapters_are_refused(adapter):
    with refuse("`adapter_name_or_path` must name the adapter of the teacher, which carries none, got None"):
        Cleaned().prepare(tiny_vit())
    with refuse(
        "`adapter_name_or_path` must be left out for a teacher that carries SiNGER adapters already (behind the "
        "blocks [1]), got 'cleaned'"
    ):
        Cleaned("cleaned").prepare(attach(tiny_vit(), layers_to_transform=[1]))
    with refuse("`train_adapter` must be true or false, got 'yes'"):
        Cleaned("cleaned", "yes")
    with refuse("`adapter_name_or_path` must name the adapter of the cleaned teacher, a folder or a Hub id, got None"):
        make_method("cleaned")
    assert list(find_singer_layers(Cleaned(adapter).prepare(tiny_vit()))) == [1]


def test_the_settings_of_a_run_hold_the_adapter_and_not_its_folder(adapter, tmp_path):
    settings = run_settings(cleaned_run(tmp_path, adapter))
    own = {name: value for name, value in settings.items() if name.startswith("method")}
    assert own.keys() == {"method", "method.train_adapter", "method.initial_adapter"}
    assert Path(adapter).name not in json.dumps(own["method.initial_adapter"])
