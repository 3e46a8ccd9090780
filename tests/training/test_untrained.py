"""A run that could only give an untrained or meaningless student is refused at its start, with what to do."""

import copy
import re

import pytest
import torch
from runs import arguments, make_trainer, small_student
from zoo import tiny_vit

from singer_hf import SingerConfig, SingerDistiller

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def same_twice():
    model = tiny_vit()
    return {"model": model, "teacher_model": model}


def sharing():
    teacher = tiny_vit()
    student = copy.deepcopy(teacher)
    student.embeddings = teacher.embeddings
    return {"model": student, "teacher_model": teacher}


SHARED = (
    "`student` and `teacher` must not share weights, which would be frozen with the teacher; to distil a model into "
    "itself pass `copy.deepcopy(teacher)` as the student"
)
FLOAT32 = (
    "`model` must be in float32, got {}; load it with `dtype=torch.float32` or call `model.float()`. For speed set "
    "`bf16=True`, which keeps the weights in float32"
)
INFERENCE = (
    "`peft_config.inference_mode` must be False: the adapter would not be trained; leave it out, or load a trained "
    "adapter with `PeftModel.from_pretrained` and give that teacher without `peft_config`"
)
WEIGHTS = "`kd_weight` must be greater than 0, or the student is not trained, got "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (same_twice, SHARED),
        (sharing, SHARED),
        (
            lambda: {"model": small_student().requires_grad_(False)},
            "`model` must have weights to train, all of them are frozen; call `model.requires_grad_(True)`",
        ),
        (lambda: {"model": small_student().bfloat16(), "bf16": True}, FLOAT32.format("bfloat16")),
        (lambda: {"model": small_student().half()}, FLOAT32.format("float16")),
        (lambda: {"peft_config": SingerConfig(r=4, layers_to_transform=[1, 3], inference_mode=True)}, INFERENCE),
        (
            lambda: {"kd_weight": 0.0, "outlier_weight": 0.0, "info_weight": 0.0},
            WEIGHTS + "{'kd_weight': 0.0, 'outlier_weight': 0.0, 'info_weight': 0.0}",
        ),
        (lambda: {"kd_weight": 0.0, "bare": True}, WEIGHTS + "{'kd_weight': 0.0}"),
        (
            lambda: {"adapter_warmup_steps": 4, "max_steps": 4},
            "`adapter_warmup_steps` must be less than the 4 steps of the run, or the student is not trained, got 4",
        ),
    ],
)
def test_a_student_that_would_not_be_trained_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(tmp_path, **options())


def test_the_distiller_itself_refuses_its_teacher_as_student():
    model = tiny_vit()
    with pytest.raises(ValueError, match=f"^{re.escape(SHARED)}$"):
        SingerDistiller(model, model)


def test_a_warm_up_is_compared_with_a_length_in_epochs(tmp_path):
    """24 images in batches of 4: six steps."""
    trainer = make_trainer(tmp_path, adapter_warmup_steps=6, max_steps=-1, num_train_epochs=1)
    with pytest.raises(ValueError, match="`adapter_warmup_steps` must be less than the 6 steps of the run, or "):
        trainer.train()


def test_a_batch_larger_than_the_data_is_refused_before_an_earlier_run_is_removed(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"old")
    options = {"per_device_train_batch_size": 32, "dataloader_drop_last": True, "overwrite_output_dir": True}
    message = (
        "`dataloader_drop_last` leaves no batch: 24 training images, 32 in a batch; take a smaller "
        "`per_device_train_batch_size` or leave the option out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(tmp_path, **options).train()
    assert (tmp_path / "model.safetensors").exists()


def test_a_run_without_a_step_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=-1, num_train_epochs=0)
    with pytest.raises(
        ValueError, match="the training made no step: `num_train_epochs` or `train_dataset` is too small"
    ):
        trainer.train()


def test_a_partly_frozen_student_is_trained(tmp_path):
    student = small_student()
    student.embeddings.requires_grad_(False)
    make_trainer(tmp_path, model=student, max_steps=1).train()


def test_the_library_s_own_checkpoint_on_sigterm_is_refused(tmp_path):
    message = (
        "`enable_jit_checkpoint` must be False: it would publish an unfinished model. SIGTERM and Ctrl-C save a "
        "checkpoint without it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        arguments(tmp_path, enable_jit_checkpoint=True)


def test_a_trained_student_can_be_copied(tmp_path):
    """The hooks of the training are gone from it, or can be copied too."""
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    images = torch.randn(2, 3, 32, 32)
    student = trainer.student.eval()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(student)(images).last_hidden_state, student(images).last_hidden_state)
