"""Between two logs a run reads nothing from its device."""

import pytest
import torch
import transformers as hf
from cleanings import QUIET, lasting_vit, noise_dataset, planted_processor
from runs import adapter, make_trainer
from waits import Waits

from singer_hf import CleaningArguments, SingerConfig, SingerTrainingArguments
from singer_hf.training.adapter.base_arguments import copy_without_waiting
from singer_hf.training.adapter.trainer import AdapterTrainer
from singer_hf.training.callbacks import EmaCallback
from singer_hf.tuner.model import attach_adapter

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")
OPTIONS = {"max_steps": 4, "logging_steps": 4, "save_strategy": "no", "per_device_train_batch_size": 4}


class Watch(hf.TrainerCallback):
    """Counts within the second and third step: forward, backward, optimiser, schedule, callbacks. Data come before."""

    def __init__(self) -> None:
        self.waits, self.counted = Waits(), []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step in (1, 2):
            self.waits.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (2, 3):
            self.waits.__exit__(None, None, None)
            self.counted.append(state.global_step)


def watch(trainer: hf.Trainer) -> list[str]:
    callback = Watch()
    trainer.add_callback(callback)  # after the moving average
    trainer.train()
    assert callback.counted == [2, 3]
    return callback.waits.found


@pytest.mark.parametrize(
    "options",
    [
        {"bare": True},
        {"peft_config": adapter(gate="outlier"), "ema_decay": 0.9},
        {
            "outlier_loss": "relative",
            "info_loss": "reference",
            "target_norm": "channel",
            "detach_refined": False,
            "info_share": 0.5,
        },
        {"adapter_warmup_steps": 2, "gradient_accumulation_steps": 2},
    ],
    ids=["fitnet", "default with average", "other losses", "warm-up"],
)
def test_a_step_of_a_distillation_waits_for_nothing(tmp_path, options):
    assert watch(make_trainer(tmp_path, **OPTIONS, **options)) == []


@pytest.mark.parametrize("outlier_loss", ["neighbors", "absolute"])
def test_a_step_of_a_cleaning_waits_for_nothing(tmp_path, outlier_loss):
    args = CleaningArguments(output_dir=str(tmp_path), **{**QUIET, **OPTIONS}, outlier_loss=outlier_loss)
    teacher = attach_adapter(lasting_vit(), SingerConfig(r=4, layers_to_transform=[1], init_weights="random"))
    assert watch(AdapterTrainer(teacher, args, noise_dataset(20), planted_processor())) == []


def test_the_counter_sees_an_optimiser_that_reads_its_steps(tmp_path):
    found = watch(make_trainer(tmp_path, **OPTIONS, optim="adamw_torch"))
    assert found
    assert all(line.startswith("_local_scalar_dense at ") for line in found)


@pytest.mark.parametrize("kind", [SingerTrainingArguments, CleaningArguments])
def test_the_optimiser_is_fused_and_batches_are_copied_without_waiting(tmp_path, kind):
    args = kind(output_dir=str(tmp_path), **QUIET)
    assert torch.__version__ < "2.8" or args.optim == "adamw_torch_fused"
    assert not args.accelerator_config.non_blocking  # on a CPU there is nothing to wait for
    args.dataloader_pin_memory = True
    copy_without_waiting(args)
    assert args.accelerator_config.non_blocking
    own = {"non_blocking": True, "even_batches": False}
    kept = kind(output_dir=str(tmp_path), accelerator_config=own, **QUIET).accelerator_config
    assert (kept.non_blocking, kept.even_batches) == (True, False)


def test_integers_of_the_average_are_the_students():
    """Averaged as numbers some would be rounded down: 0.9 * 3 + 0.1 * 3 is less than 3 in float32."""
    student = torch.nn.Linear(2, 2)
    student.register_buffer("position_ids", torch.arange(100))
    ema = EmaCallback(student, decay=0.9)
    ema.on_step_end(None, None, None)
    assert ema.average.position_ids.tolist() == list(range(100))
    student.position_ids += 1
    ema.on_step_end(None, None, None)
    assert ema.average.position_ids.tolist() == list(range(1, 101))
