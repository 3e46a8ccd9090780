"""The trainer in one process: what it logs, trains, evaluates, saves and refuses."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from peft import PeftModel
from runs import (
    COMPONENTS,
    FIGURES,
    RESUMING,
    SAVED,
    differing,
    files_in,
    image_dataset,
    make_trainer,
    snapshot,
    training_rows,
)
from safetensors.torch import load_file
from torch import nn
from versions import needs
from zoo import images, tiny_vit

from singer_hf.distillation.defaults import OBJECTIVE

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

# Of the terms in a loss; the recommended ones, the default.
WEIGHTS = {f"{term}_loss": OBJECTIVE[f"{term}_weight"] for term in ("kd", "outlier", "info")}
MEASURES = {"teacher_outlier_ratio", "refined_outlier_ratio", "student_outlier_ratio", "adapter_leakage"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps with an evaluation every two, an adapter, TensorBoard and a Hub token; saved at the end."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("run") / "out"
    seen, scores = [], iter([0.9, 0.5, 0.7])

    def evaluator(model: nn.Module) -> dict[str, float]:
        seen.append((model, model.training, torch.is_grad_enabled()))
        return {"top1": next(scores)}

    trainer = make_trainer(
        folder,
        eval_dataset=image_dataset(8),
        evaluators=[evaluator],
        eval_strategy="steps",
        eval_steps=2,
        report_to="tensorboard",
        hub_token="hf_secret",
        hub_model_id="someone/student",
    )
    before = snapshot(trainer.distiller)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    return SimpleNamespace(trainer=trainer, folder=folder, before=before, seen=seen, metrics=metrics)


@needs("transformers", "5.3")  # without clipping, the norm of the gradients
def test_every_log_has_the_components_the_artifacts_learning_rate_and_gradient_norm(run):
    rows = training_rows(run.trainer)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert {*COMPONENTS, *MEASURES, "learning_rate", "grad_norm"} <= row.keys()
        assert row["learning_rate"] == 1e-3
        assert row["grad_norm"] > 0
        expected = sum(row[name] * weight for name, weight in WEIGHTS.items())
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


@needs("transformers", "5.3")
def test_the_figures_reach_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in run.folder.rglob("*tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    for name in (*COMPONENTS, *MEASURES, "loss", "learning_rate", "grad_norm"):
        logged = [event.value for event in events.Scalars(f"train/{name}")]
        assert logged == pytest.approx([row[name] for row in training_rows(run.trainer)], rel=1e-6), name
    for name in (*COMPONENTS, "loss", "top1"):
        assert len(events.Scalars(f"eval/{name}")) == 3, name


def test_training_changes_student_projectors_and_adapter_and_no_teacher_tensor(run):
    """The final norm of the student is behind what is distilled, and its mask token is not used."""
    untouched = set(run.before) - differing(run.before, snapshot(run.trainer.distiller))
    student = {"student.layernorm.weight", "student.layernorm.bias"}
    teacher = {name for name in run.before if name.startswith("teacher.") and "singer_" not in name}
    assert untouched == student | teacher


def test_evaluators_get_the_student_in_eval_mode_without_gradients(run):
    assert len(run.seen) == 3
    assert all(entry == (run.trainer.student, False, False) for entry in run.seen)
    assert run.trainer.student is run.trainer.distiller.student


def test_an_evaluation_gives_loss_components_and_the_evaluators_figures(run):
    expected = sum(run.metrics[f"eval_{name}"] * weight for name, weight in WEIGHTS.items())
    assert run.metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert run.metrics["eval_top1"] == 0.7


def test_exactly_the_promised_files_are_saved(run):
    own = {name for name in files_in(run.folder) if not name.startswith(("checkpoint-", "runs/"))}
    assert own == SAVED | FIGURES
    assert {path.name for path in run.folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    for step in (2, 4):
        assert files_in(run.folder / f"checkpoint-{step}") == SAVED | RESUMING


def test_the_saved_student_is_a_plain_model(run):
    student = hf.AutoModel.from_pretrained(run.folder, add_pooling_layer=False)
    assert type(student) is type(run.trainer.student)
    assert differing(student.state_dict(), run.trainer.student.state_dict()) == set()
    config = json.loads((run.folder / "config.json").read_text())
    assert "use_cache" not in config
    assert not any("singer" in key or "peft" in key for key in config)


def test_the_saved_processor_is_the_students(run):
    processor = hf.AutoImageProcessor.from_pretrained(run.folder)
    assert (processor.size["height"], list(processor.image_mean)) == (32, [0.5] * 3)


def test_the_saved_adapter_refines_a_fresh_teacher_alike(run):
    adapted = PeftModel.from_pretrained(tiny_vit(), str(run.folder), subfolder="singer").eval()
    with torch.no_grad():
        expected = run.trainer.distiller.teacher(images()).last_hidden_state
        assert torch.equal(adapted(images()).last_hidden_state, expected)


def test_the_saved_projectors_are_the_trained_ones(run):
    saved = load_file(run.folder / "projectors/model.safetensors")
    assert differing(saved, dict(run.trainer.distiller.projectors.state_dict())) == set()


def test_no_file_holds_the_hub_token_or_a_teacher_weight(run):
    for path in run.folder.rglob("*"):
        if path.is_file():
            assert b"hf_secret" not in path.read_bytes(), path
    for path in run.folder.rglob("*.safetensors"):
        assert not any("teacher" in name or "base_layer" in name for name in load_file(path)), path


def test_a_second_run_into_the_same_folder_is_refused(run):
    message = (
        f"`output_dir` must not hold another run, {str(run.folder)!r} has checkpoint-2, checkpoint-4, "
        "model.safetensors. Resume that run (`resume_from_checkpoint=True`), use another folder, or set "
        "`overwrite_output_dir=True`"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(run.folder).train()
