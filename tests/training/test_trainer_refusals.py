"""What stops a run: bad input before its first step, a loss that is not finite within it."""

import json
import re
import shutil
from collections import Counter

import datasets
import pytest
import transformers as hf
from peft import get_peft_model
from runs import arguments, files_in, image_dataset, make_trainer, small_student
from torch import nn
from zoo import tiny_vit

from singer_hf import SingerConfig, SingerDistillationTrainer

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


class Poisoned(nn.Module):
    """Gives NaN for the third batch of a run; evaluations and checks do not count."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector, self.calls = projector, Counter()

    def forward(self, tokens):
        self.calls["forward"] += self.training
        return self.projector(tokens) * (float("nan") if self.calls["forward"] == 3 else 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=6)
    projectors = trainer.distiller.projectors
    state = trainer.distiller.projectors.state_dict()
    checkpoints = {}
    trainer.add_callback(CheckpointRecorder(tmp_path, checkpoints))
    poisoned = Poisoned(projectors["3"])
    projectors["3"] = poisoned
    poisoned.state_dict = lambda *args, **kwargs: state
    file = tmp_path / "non_finite_loss_rank0.json"
    message = (
        f"`kd_loss` is not finite at step 3 (batch 3 of this session); written to {str(file)!r}. Nothing was saved "
        "since the last checkpoint. Lower `learning_rate`, use bf16 instead of fp16, or check the batch"
    )
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}$"):
        trainer.train()
    report = json.loads(file.read_text())
    assert report == {
        "step": 3,
        "epoch": pytest.approx(1 / 3, abs=1e-6),
        "component": "kd_loss",
        "batch": 3,
        "process": 0,
    }
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "model.safetensors").exists()
    for name, content in checkpoints.items():
        assert (tmp_path / "checkpoint-2" / name).read_bytes() == content


class CheckpointRecorder(hf.TrainerCallback):
    """Keeps the bytes of a checkpoint when it is written."""

    def __init__(self, folder, files: dict) -> None:
        self.folder, self.files = folder, files

    def on_save(self, args, state, control, **kwargs):
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        self.files.update({name: (checkpoint / name).read_bytes() for name in files_in(checkpoint)})


def test_a_full_disk_is_noticed_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(OSError, match=r"^a checkpoint takes about \d+ MiB and only 0 MiB are free at ") as caught:
        make_trainer(tmp_path / "new").train()
    assert str(caught.value).endswith(f"{str(tmp_path / 'new')!r}; free some space or choose another `output_dir`")
    assert not list(tmp_path.glob("new/checkpoint-*"))


def test_several_gpus_without_a_launcher_are_refused(tmp_path, monkeypatch):
    args = arguments(tmp_path)
    monkeypatch.setattr(type(args), "n_gpu", 2)
    message = (
        "2 GPUs are visible to one process; start one process per GPU (`accelerate launch` or `torchrun "
        "--nproc_per_node`), or make a single one visible with CUDA_VISIBLE_DEVICES"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SingerDistillationTrainer(small_student(), tiny_vit(), args)


def test_a_student_that_is_no_transformers_model_is_refused(tmp_path):
    message = (
        "`model` must be a transformers model, so that anyone can load what is saved, got Linear; wrap a timm model "
        "as TimmWrapperModel"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(tmp_path, model=nn.Linear(2, 2))


def text_dataset():
    return datasets.Dataset.from_dict({"text": ["a", "b"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_dataset": text_dataset()}, r"^`dataset` must have a column of images, got the columns \['text'\]"),
        ({"image_column": "picture"}, r"^`image_column` must be one of \['image', 'label'\], got 'picture'"),
        (
            {"train_dataset": image_dataset().select([])},
            "^the dataset is empty: it has an image column but no rows$",
        ),
        (
            {"processing_class": None, "teacher_processing_class": None},
            "^`processing_class` must be an image processor for a dataset of images, got None; load one with "
            "`AutoImageProcessor.from_pretrained`$",
        ),
        ({"student_layers": [0]}, "^`student_layers` must name one student block for each of the 2 distilled "),
        ({"model": small_student(num_hidden_layers=1)}, "^the student has 1 blocks, fewer than the 2 distilled "),
        ({"model": "no/such/folder"}, "^`model` must be a module, a local folder with config.json and weights, or "),
    ],
)
def test_input_that_does_not_fit_is_refused_before_training(tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_trainer(tmp_path, **options)


def test_a_second_adapter_configuration_is_refused(tmp_path):
    teacher = get_peft_model(tiny_vit(), SingerConfig(r=2, layers_to_transform=[3]))
    message = "`peft_config` must be left out for a teacher that already has a SiNGER adapter"
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_trainer(tmp_path, teacher_model=teacher)


def test_an_output_folder_is_written_over_with_the_flag(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"old")
    make_trainer(tmp_path, overwrite_output_dir=True, max_steps=1).train()


def test_training_on_after_training_is_no_other_run(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    trainer.train()
