"""Options of the Trainer: accumulation, compilation, moving average, streaming, best checkpoint, evaluation sets."""

import datasets
import pytest
import torch
import transformers as hf
from runs import (
    COMPONENTS,
    RESUMING,
    SAVED,
    adapter,
    differing,
    files_in,
    image_dataset,
    image_processor,
    make_trainer,
    small_student,
    snapshot,
    training_rows,
)
from torch import nn
from zoo import images, tiny_vit

from singer_hf import SingerDistillationTrainer
from singer_hf.vit import running_statistics

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


@pytest.mark.parametrize("settings", [{"bf16": True}, {"bare": True}, {"activation_checkpointing": True}])
def test_it_trains(tmp_path, settings):
    trainer = make_trainer(tmp_path, max_steps=12, learning_rate=3e-3, save_strategy="no", **settings)
    trainer.train()
    losses = [row["loss"] for row in training_rows(trainer)]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in trainer.distiller.parameters())


def train_to(folder, **settings):
    trainer = make_trainer(folder, save_strategy="no", **settings)
    trainer.train()
    return trainer


def test_two_accumulated_batches_of_two_equal_one_of_four(tmp_path):
    # Statistics by channel settle over batches, whatever a step is made of: they are left out.
    all_images = {"target_norm": "token", "info_share": 1.0}  # a share is drawn anew for every batch
    one = train_to(tmp_path / "a", **all_images)
    two = train_to(tmp_path / "b", **all_images, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for first, second in zip(training_rows(one), training_rows(two), strict=True):
        for name in ("loss", "grad_norm", *COMPONENTS):
            assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-9), name
    for name, value in one.distiller.state_dict().items():
        torch.testing.assert_close(two.distiller.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def test_statistics_that_are_fixed_rest_from_the_next_log_on_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(running_statistics, "NUM_SETTLING_BATCHES", 2)
    gated = {"peft_config": adapter(gate="outlier"), "max_steps": 6}
    logged = train_to(tmp_path / "a", logging_steps=3, **gated)
    silent = train_to(tmp_path / "b", logging_strategy="no", **gated)
    statistics = [
        part for part in logged.distiller.modules() if isinstance(part, running_statistics.SettlingStatistics)
    ]
    assert {type(part).__name__ for part in statistics} == {"OutlierGate", "ChannelTokenNorm"}
    assert all(part.is_settled and part.num_batches == 2 for part in statistics)
    assert differing(snapshot(logged.distiller), snapshot(silent.distiller)) == set()


def test_activation_checkpointing_and_compilation_change_nothing(tmp_path):
    plain = snapshot(train_to(tmp_path / "a", max_steps=2).distiller)
    options = {"activation_checkpointing": True, "torch_compile": True, "torch_compile_backend": "eager"}
    trainer = train_to(tmp_path / "b", max_steps=2, **options)
    for name, value in snapshot(trainer.distiller).items():
        torch.testing.assert_close(value, plain[name], msg=lambda text, name=name: f"{name} {text}")
    trainer.save_model()
    saved = hf.AutoModel.from_pretrained(tmp_path / "b", add_pooling_layer=False)
    assert differing(saved.state_dict(), trainer.student.state_dict()) == set()


def test_the_running_average_is_evaluated_and_saved(tmp_path):
    evaluated = []
    trainer = make_trainer(
        tmp_path,
        ema_decay=0.5,
        max_steps=1,
        eval_dataset=image_dataset(4),
        evaluators=[lambda model: evaluated.append(model) or {}],
    )
    start = snapshot(trainer.distiller.student)
    trainer.train()
    trainer.evaluate()
    trained, average = trainer.distiller.student.state_dict(), trainer.student.state_dict()
    assert evaluated == [trainer.student]
    for name, value in average.items():
        torch.testing.assert_close(value, (start[name] + trained[name]) / 2)
    saved = hf.AutoModel.from_pretrained(tmp_path / "checkpoint-1", add_pooling_layer=False)
    assert differing(saved.state_dict(), average) == set()
    assert files_in(tmp_path / "checkpoint-1") == SAVED | RESUMING | {"raw_student/model.safetensors"}


@pytest.mark.parametrize("streaming_source", ["saved", "generated"])
def test_a_streaming_dataset_trains_for_max_steps(tmp_path, streaming_source):
    rows = image_dataset(10)
    if streaming_source == "saved":
        stream = rows.to_iterable_dataset(num_shards=2)
    else:
        stream = datasets.IterableDataset.from_generator(lambda: iter(rows), features=rows.features)
    trainer = make_trainer(tmp_path, train_dataset=stream, max_steps=6, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 6
    assert all(row["loss"] > 0 for row in training_rows(trainer))


def test_a_dataset_of_pixel_values_needs_no_processor(tmp_path):
    rows = [{"pixel_values": image} for image in images(batch=8)]
    trainer = make_trainer(
        tmp_path, train_dataset=rows, processing_class=None, teacher_processing_class=None, max_steps=2
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert "preprocessor_config.json" not in files_in(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_checkpoint_by_an_evaluators_figure_is_restored(tmp_path, ema_decay):
    scores = iter([0.1, 0.8, 0.3])
    trainer = make_trainer(
        tmp_path,
        max_steps=3,
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=image_dataset(4),
        evaluators=[lambda model: {"mean_iou": next(scores)}],
        metric_for_best_model="mean_iou",
        greater_is_better=True,
        load_best_model_at_end=True,
        save_total_limit=1,
        ema_decay=ema_decay,
    )
    recorder = Recorder(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    assert trainer.state.best_metric == 0.8
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert differing(recorder.snapshot(), recorder.states[2]) == set()
    assert differing(recorder.snapshot(), recorder.states[3])


class Recorder(hf.TrainerCallback):
    """Keeps the composite's and the published student's weights after every step."""

    def __init__(self, trainer: SingerDistillationTrainer) -> None:
        self.trainer, self.states = trainer, {}

    def snapshot(self) -> dict[str, torch.Tensor]:
        both = nn.ModuleDict({"distiller": self.trainer.distiller, "published": self.trainer.student})
        return snapshot(both)

    def on_step_end(self, args, state, control, **kwargs):
        self.states[state.global_step] = self.snapshot()


def test_several_evaluation_sets_have_names(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset={"near": image_dataset(4), "far": image_dataset(8)})
    metrics = trainer.evaluate()
    assert {"eval_near_kd_loss", "eval_far_kd_loss", "eval_near_loss", "eval_far_loss"} <= metrics.keys()


def test_each_side_sees_its_own_normalisation(tmp_path):
    trainer = make_trainer(tmp_path)
    teacher_input = trainer.distiller.teacher_input
    # (x * 0.5 + 0.5 - 0.4) / 0.2
    torch.testing.assert_close(teacher_input.scale.flatten(), torch.full((3,), 2.5), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(teacher_input.shift.flatten(), torch.full((3,), 0.5), atol=1e-5, rtol=1e-5)


def test_models_and_processors_are_found_by_folder(tmp_path):
    small_student().save_pretrained(tmp_path / "student")
    tiny_vit().save_pretrained(tmp_path / "teacher")
    image_processor(0.4, 0.2).save_pretrained(tmp_path / "teacher")
    trainer = make_trainer(
        tmp_path / "out",
        model=str(tmp_path / "student"),
        teacher_model=str(tmp_path / "teacher"),
        processing_class=None,
        teacher_processing_class=None,
        max_steps=1,
    )
    assert list(trainer.processing_class.image_mean) == pytest.approx([0.4] * 3, abs=1e-6)
    assert not trainer.distiller.teacher_input.renormalizes
    trainer.train()
