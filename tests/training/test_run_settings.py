"""A checkpoint knows its settings: a run with others that matter does not take it up."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from runs import adapter, image_dataset, image_processor, make_resumable, small_student
from zoo import tiny_vit

from singer_hf.distillation.defaults import OBJECTIVE

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    trainer = make_resumable(tmp_path_factory.mktemp("run"), max_steps=2)
    trainer.train()
    return Path(trainer.args.output_dir) / "checkpoint-2"


def other_teacher():
    teacher = tiny_vit()
    with torch.no_grad():
        teacher.layers[0].mlp.fc1.weight.add_(0.1) if hasattr(teacher, "layers") else next(teacher.parameters()).add_(
            1
        )
    return teacher


DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}


NORM = "token" if OBJECTIVE["target_norm"] != "token" else "channel"


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"learning_rate": 1e-2}, "learning_rate 0.001 -> 0.01"),
        ({"seed": 4, "kd_weight": 2.0}, "seed 3 -> 4, kd_weight 1.0 -> 2.0"),
        ({"target_norm": NORM}, f"target_norm {OBJECTIVE['target_norm']!r} -> {NORM!r}"),
        ({"peft_config": adapter(gate="outlier")}, "adapter.gate 'none' -> 'outlier'"),
        ({"info_share": 0.5}, "info_share 0.25 -> 0.5"),
        ({"max_steps": 4}, "length '2 steps' -> '4 steps'"),
        ({"per_device_train_batch_size": 2}, "images per step 4 -> 2"),
        ({"train_dataset": image_dataset(16)}, "training images 20 -> 16"),
        ({"model": small_student(**DROPOUT)}, "student.hidden_dropout_prob 0.1 -> 0.2"),
        ({"peft_config": adapter(r=2)}, "adapter.r [4, 4] -> [2, 2]"),
        (
            {"peft_config": adapter(layers_to_transform=[2, 3])},
            "block pairs [[1, 0], [3, 1]] -> [[2, 0], [3, 1]]",
        ),
        (
            {"peft_config": adapter(init_weights="random")},
            "adapter.init_weights 'nullspace' -> 'random'",
        ),
        (
            {"processing_class": image_processor(0.4)},
            "image processor.image_mean [0.5, 0.5, 0.5] -> [0.4, 0.4, 0.4]",
        ),
        (
            {"peft_config": adapter(num_prefix_tokens=0)},
            "adapter.num_prefix_tokens [1, 1] -> [0, 0]",
        ),
        ({"bare": True, "teacher_layers": [1, 3]}, "teacher_layers None -> [1, 3], method 'singer' -> 'fitnet'"),
    ],
)
def test_other_settings_are_refused_and_named(checkpoint, tmp_path, options, difference):
    trainer = make_resumable(tmp_path, **{"max_steps": 2, **options})
    message = (
        f"`resume_from_checkpoint`: {str(checkpoint)!r} was made with other settings: {difference}. Take these back, "
        "or start a new run in another `output_dir`, with the saved student as `model` if it is to be trained on"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_version_0_1_has_the_objective_that_was_the_only_one_then(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    file = folder / "run_settings.json"
    saved = json.loads(file.read_text())
    for name in ("kd_loss", "target_norm", "outlier_loss", "info_share", "adapter.gate"):
        del saved[name]
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"outlier_loss 'absolute' -> 'relative', target_norm 'none' -> 'channel'"):
        make_resumable(
            tmp_path / "new", max_steps=2, info_share=1, target_norm="channel", outlier_loss="relative"
        ).train(resume_from_checkpoint=str(folder))
    with pytest.raises(ValueError, match=r"adapter.gate 'none' -> 'outlier'\. Take"):
        make_resumable(
            tmp_path / "gated",
            max_steps=2,
            info_share=1,
            target_norm="none",
            outlier_loss="absolute",
            peft_config=adapter(gate="outlier"),
        ).train(resume_from_checkpoint=str(folder))


def test_another_teacher_of_the_same_architecture_is_noticed(checkpoint, tmp_path):
    trainer = make_resumable(tmp_path, max_steps=2, teacher_model=other_teacher())
    with pytest.raises(ValueError, match=r"was made with other settings: teacher weights '\w+' -> '\w+'\. Take"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_settings_that_change_no_result_may_differ(checkpoint, tmp_path):
    """Another folder, workers, logs and saves, and the same images per step in smaller batches."""
    shutil.copytree(checkpoint, tmp_path / "moved" / "checkpoint-2")
    free = {"logging_steps": 2, "save_steps": 1, "dataloader_num_workers": 1, "num_artifact_images": 2}
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make_resumable(tmp_path / "moved", **{"max_steps": 2, **free, **batches})
    trainer.train(resume_from_checkpoint=True)
    assert trainer._initial_global_step == 2


def test_a_run_with_a_constant_learning_rate_may_be_made_longer(tmp_path):
    constant = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {}}
    make_resumable(tmp_path, max_steps=2, **constant).train()
    longer = make_resumable(tmp_path, max_steps=3, **constant)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 3


def test_a_checkpoint_without_settings_is_taken_up_with_a_warning(checkpoint, tmp_path, caplog):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    (folder / "run_settings.json").unlink()
    with caplog.at_level(logging.WARNING, "singer_hf"):
        make_resumable(tmp_path, max_steps=2).train(resume_from_checkpoint=True)
    expected = f"{folder} has no run_settings.json; its settings cannot be compared with those of this run"
    assert caplog.messages == [expected]


def test_the_settings_hold_no_path(checkpoint):
    text = (checkpoint / "run_settings.json").read_text()
    assert not any("/" in str(value) for value in json.loads(text).values()), text
