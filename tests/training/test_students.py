"""Several students of one teacher in one run: as good as alone, each with folder, log, card and best checkpoint."""

import json
import re

import pytest
import torch
import transformers as hf
from peft import PeftModel
from runs import differing, files_in, image_dataset, make_trainer, small_student, snapshot
from zoo import tiny_vit

from singer_hf.distillation.student_group import StudentGroup
from singer_hf.training.run_card import card_info

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def other_student() -> hf.ViTModel:
    """Another family, patch size and depth."""
    return tiny_vit(hidden_size=24, num_hidden_layers=3, intermediate_size=48)


def cnn_student() -> hf.ResNetModel:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return hf.ResNetModel(hf.ResNetConfig(**sizes))


def three() -> dict:
    return {"small": small_student(), "tiny": other_student(), "cnn": cnn_student()}


class Score:
    """An evaluator with given values, one after the other for each class of students."""

    def __init__(self, **values):
        self.values = {name: list(scores) for name, scores in values.items()}

    def __call__(self, student):
        return {"score": self.values[type(student).__name__].pop(0)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "out"
    trainer = make_trainer(folder, model=three(), eval_dataset=image_dataset(8), eval_strategy="steps", eval_steps=2)
    trainer.train()
    trainer.save_model()
    return trainer, folder


def alone(tmp_path, group, name, student):
    """A run of one student with the projectors and the teacher's images that it has in the group."""
    trainer = make_trainer(tmp_path / name, model=student, detach_refined=True)
    trainer.distiller.projectors.load_state_dict(group[f"{name} projectors"])
    return trainer


def test_a_student_learns_what_it_learns_alone(tmp_path):
    """The losses of other students have no gradient to it, and the adapter does not see them."""
    students = {"small": small_student(), "twin": small_student(hidden_size=32)}
    trainer = make_trainer(tmp_path / "group", model=students, detach_refined=True)
    before = {f"{name} projectors": snapshot(run.distiller.projectors) for name, run in trainer.runs.items()}
    trainer.train()
    for name, student in {"small": small_student(), "twin": small_student(hidden_size=32)}.items():
        single = alone(tmp_path, before, name, student)
        single.train()
        own = trainer.runs[name]
        assert differing(snapshot(own.student), snapshot(single.student)) == set()
        assert differing(snapshot(own.distiller.projectors), snapshot(single.distiller.projectors)) == set()
        adapters = {key: value for key, value in snapshot(trainer.distiller.teacher).items() if "singer_" in key}
        expected = {key: value for key, value in snapshot(single.distiller.teacher).items() if "singer_" in key}
        assert differing(adapters, expected) == set()


def test_the_teacher_runs_once_a_step(tmp_path):
    trainer = make_trainer(tmp_path, model=three())
    calls = []
    block = trainer.distiller.lead.teacher_view.blocks[0]
    with block.register_forward_hook(lambda *_: calls.append(1)):
        trainer.distiller(torch.randn(2, 3, 32, 32))
    assert len(calls) == 1


def test_every_student_and_the_adapter_are_trained_and_the_teacher_is_not(tmp_path):
    trainer = make_trainer(tmp_path, model=three())
    before = snapshot(trainer.distiller)
    trainer.train()
    changed = differing(before, snapshot(trainer.distiller))
    parameters = {name for name, parameter in trainer.distiller.named_parameters() if parameter.requires_grad}
    # The last block's features are distilled, before the final norm.
    assert {name for name in parameters - changed if "student.layernorm." not in name} == set()
    assert not {name for name in changed - parameters if name.startswith("teacher.") and "singer_" not in name}


def test_the_finest_grid_leads(tmp_path):
    trainer = make_trainer(tmp_path, model=three())
    assert isinstance(trainer.distiller, StudentGroup)
    assert trainer.distiller.lead is trainer.runs["tiny"].distiller
    assert {run.distiller.teacher_input.grid for run in trainer.runs.values()} == {(4, 4)}


def test_losses_and_metrics_carry_the_name_of_their_student(trained):
    trainer, _ = trained
    names = {key for row in trainer.state.log_history for key in row}
    assert {"small_kd_loss", "tiny_kd_loss", "cnn_kd_loss", "outlier_loss", "info_loss"} <= names
    assert {"eval_small_kd_loss", "eval_cnn_kd_loss", "eval_outlier_loss"} <= names
    assert {"teacher_outlier_ratio", "small_student_outlier_ratio"} <= names
    assert "kd_loss" not in names
    row = trainer.state.log_history[0]
    total = row["small_kd_loss"] + row["tiny_kd_loss"] + row["cnn_kd_loss"] + row["outlier_loss"] + row["info_loss"]
    assert row["loss"] == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("name", ["small", "tiny", "cnn"])
def test_each_folder_is_that_of_a_run_of_its_own(trained, name):
    trainer, folder = trained
    own = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "training_args.json"}
    own |= {"projectors/model.safetensors", "singer/adapter_model.safetensors", "target_norms/model.safetensors"}
    assert own <= files_in(folder / name)
    loaded = hf.AutoModel.from_pretrained(folder / name)
    saved = trainer.runs[name].student.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.state_dict().items() if key in saved)
    refined = PeftModel.from_pretrained(tiny_vit(), str(folder / name), subfolder="singer")
    assert sorted(refined.base_model.singer_layers) == [1, 3]
    card = (folder / name / "README.md").read_text()
    assert type(trainer.runs[name].student).__name__ in card


def test_the_card_of_a_student_shows_its_own_losses(trained):
    trainer, folder = trained
    curve = card_info(trainer.runs["tiny"], folder / "tiny").loss_curve
    assert {"step", "loss", "kd_loss", "outlier_loss", "info_loss"} == set(curve[0])
    assert curve[0]["kd_loss"] == trainer.state.log_history[0]["tiny_kd_loss"]


def test_a_stopped_run_resumes_bit_for_bit(trained, tmp_path):
    straight, _ = trained
    options = {"eval_dataset": image_dataset(8), "eval_strategy": "steps", "eval_steps": 2}
    make_trainer(tmp_path, model=three(), **options, max_steps=2).train()
    resumed = make_trainer(tmp_path, model=three(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()


def test_a_checkpoint_without_one_of_the_students_is_incomplete(tmp_path, caplog):
    make_trainer(tmp_path, model=three(), max_steps=4).train()
    (tmp_path / "checkpoint-4/cnn/model.safetensors").unlink()
    resumed = make_trainer(tmp_path, model=three())
    resumed.train(resume_from_checkpoint=True)
    assert "skipping the incomplete checkpoint" in caplog.text
    assert resumed.state.global_step == 4


def test_other_students_do_not_resume(trained, tmp_path):
    make_trainer(tmp_path, model=three(), max_steps=2).train()
    changed = {**three(), "tiny": tiny_vit(hidden_size=24, num_hidden_layers=2, intermediate_size=48)}
    with pytest.raises(ValueError, match=r"tiny student.num_hidden_layers 3 -> 2"):
        make_trainer(tmp_path, model=changed).train(resume_from_checkpoint=True)


def test_each_student_ends_with_its_own_best_checkpoint(tmp_path):
    """Of three evaluations the DeiT is best at the first, the ViT at the last; one checkpoint more would be kept."""
    students = {"small": small_student(), "tiny": other_student()}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    trainer = make_trainer(
        tmp_path,
        model=students,
        evaluators=[Score(DeiTModel=[0.9, 0.1, 0.2], ViTModel=[0.1, 0.2, 0.8])],
        eval_dataset=image_dataset(4),
        eval_strategy="steps",
        eval_steps=2,
        max_steps=6,
        save_total_limit=1,
        **best,
    )
    states = {}
    trainer.add_callback(_Keep(trainer, states))
    trainer.train()
    assert differing(snapshot(trainer.runs["small"].student), states[2]["small"]) == set()
    assert differing(snapshot(trainer.runs["tiny"].student), states[6]["tiny"]) == set()


class _Keep(hf.TrainerCallback):
    def __init__(self, trainer, states):
        self.trainer, self.states = trainer, states

    def on_step_end(self, args, state, control, **kwargs):
        self.states[state.global_step] = {name: snapshot(run.student) for name, run in self.trainer.runs.items()}


def test_a_metric_that_no_student_has_is_named(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "score"}
    trainer = make_trainer(tmp_path, model=three(), eval_dataset=image_dataset(4), **settings)
    with pytest.raises(
        ValueError, match="`metric_for_best_model` must be a metric of every student, 'eval_small_score'"
    ):
        trainer.train()


def test_moving_averages_are_kept_one_by_one(tmp_path):
    trainer = make_trainer(tmp_path, model=three(), ema_decay=0.5)
    trainer.train()
    trainer.save_model()
    for name, run in trainer.runs.items():
        assert differing(snapshot(run.student), snapshot(run.distiller.student))
        saved = hf.AutoModel.from_pretrained(tmp_path / name).state_dict()
        assert all(torch.equal(v, run.average.state_dict()[k]) for k, v in saved.items() if "pooler" not in k)


def test_another_run_in_the_folder_is_refused_and_overwritten_on_demand(trained, tmp_path):
    make_trainer(tmp_path, model=three(), max_steps=2, save_strategy="no").save_model()
    with pytest.raises(ValueError, match="`output_dir` must not hold another run"):
        make_trainer(tmp_path, max_steps=2).train()
    (tmp_path / "small" / "notes.txt").write_text("mine")
    make_trainer(tmp_path, max_steps=2, overwrite_output_dir=True).train()
    assert not (tmp_path / "students.json").exists()
    assert files_in(tmp_path / "small") == {"notes.txt"}
    assert not files_in(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("students", "message"),
    [
        ({}, "`model` must hold at least one student, got {}"),
        (
            {"singer": None},
            "`model` must name students by letters, digits, - and _, and not as a folder of the run, got ",
        ),
        ({"a/b": None}, "`model` must name students by letters, digits, - and _"),
    ],
)
def test_wrong_names_are_refused(tmp_path, students, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_trainer(tmp_path, model={name: small_student() for name in students})


def test_one_student_under_two_names_is_refused(tmp_path):
    student = small_student()
    with pytest.raises(ValueError, match="`model` must hold another student under every name, got one under several"):
        make_trainer(tmp_path, model={"a": student, "b": student})


def test_the_names_are_written_beside_the_students(trained):
    _, folder = trained
    assert json.loads((folder / "students.json").read_text()) == {"students": ["small", "tiny", "cnn"]}


def test_the_only_student_is_asked_for_by_name_where_there_are_several(trained):
    trainer, _ = trained
    with pytest.raises(ValueError, match=r"this run has several students: take `trainer.runs\[name\].student`"):
        _ = trainer.student


def test_uploads_for_resuming_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("singer_hf.SingerDistillationTrainer.init_hf_repo", lambda *args, **kwargs: None)
    settings = {"push_to_hub": True, "hub_strategy": "checkpoint", "hub_model_id": "someone/students"}
    with pytest.raises(ValueError, match="`hub_strategy` must be 'end' or 'every_save' for several students"):
        make_trainer(tmp_path, model=three(), **settings)
