"""Nothing that is not finite is saved over something that is; the run ends with an error that names the place."""

import json
import re

import pytest
import torch
import transformers as hf
from runs import files_in, make_trainer

from singer_hf.distillation.distiller import SingerOutput
from singer_hf.training.guards.finite import FiniteGuard, first_non_finite

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

NAMES = ("kd_loss", "outlier_loss", "info_loss", "loss")


def outputs(*values, device="cpu"):
    return SingerOutput(
        **{name: torch.tensor(value, device=device) for name, value in zip(NAMES, values, strict=True)}
    )


class Args:
    process_index = 0

    def __init__(self, folder) -> None:
        self.output_dir = str(folder)


class Processes:
    """Gathers the values of two processes of which the other met its NaN in batch 4 of the second component."""

    def __init__(self, *others: list[int]) -> None:
        self.others = others

    def gather(self, value):
        return torch.cat([value, *(torch.tensor([other]) for other in self.others)])


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((1.0, float("nan"), 1.0, float("nan")), "outlier_loss"),
        ((1.0, 1.0, float("inf"), float("inf")), "info_loss"),
        ((1.0, 1.0, 1.0, float("-inf")), "loss"),
    ],
)
def test_component_batch_and_step_of_the_first_bad_loss_are_named(tmp_path, values, name):
    guard = FiniteGuard(Args(tmp_path))
    guard.add(outputs(1.0, 1.0, 1.0, 3.0), 1, 0.0)
    guard.check_losses(Processes())
    for step, losses in ((2, (1.0, 1.0, 1.0, 3.0)), (2, values), (3, (float("nan"),) * 4)):
        guard.add(outputs(*losses), step, 0.5)
    message = f"`{name}` is not finite at step 2 (batch 3 of this session); written to "
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}"):
        guard.check_losses(Processes())
    report = json.loads((tmp_path / "non_finite_loss_rank0.json").read_text())
    assert report == {"step": 2, "epoch": 0.5, "component": name, "batch": 3, "process": 0}
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}"):
        guard.check_error()


def test_all_processes_end_with_the_process_that_met_it_first(tmp_path):
    guard = FiniteGuard(Args(tmp_path))
    for step in (1, 2, 3):
        guard.add(outputs(1.0, 1.0, 1.0, 3.0), step, 0.0)
    never = torch.iinfo(torch.int64).max
    with pytest.raises(FloatingPointError, match=r"^`outlier_loss` is not finite at step 2 \(batch 2 of"):
        guard.check_losses(Processes([never, 2, never, 3]))
    assert json.loads((tmp_path / "non_finite_loss_rank0.json").read_text())["process"] == 1


def test_a_batch_is_noted_without_reading_the_device(tmp_path):
    """A tensor on `meta` has no values to read."""
    guard = FiniteGuard(Args(tmp_path))
    for step in (1, 2):
        guard.add(outputs(1.0, 2.0, 3.0, 4.0, device="meta"), step, 0.0)
    assert guard.num_batches == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_tensor_that_is_not_finite_is_named(value, dtype):
    tensors = {"a": torch.full((3,), 3e4), "steps": torch.tensor(3), "empty": torch.zeros(0), "b": torch.ones(2, 2)}
    assert first_non_finite(tensors) is None
    bad = {**tensors, "c": torch.tensor([1.0, value], dtype=dtype), "d": torch.tensor(value)}
    assert first_non_finite(bad) == "c"


class Diverge(hf.TrainerCallback):
    """Spoils the update of a step; all losses up to then are finite."""

    def __init__(self, step: int, how: str) -> None:
        self.step, self.how = step, how

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step != self.step - 1:
            return
        parameter = next(parameter for parameter in model.student.parameters() if parameter.grad is not None)
        if self.how == "learning rate":
            for group in optimizer.param_groups:
                group["lr"] = 1e30
        else:
            parameter.grad.fill_({"gradient": float("nan"), "moments": 1e30}[self.how])


@pytest.mark.parametrize("how", ["gradient", "learning rate", "moments"])
@pytest.mark.parametrize("step", [4, 5], ids=["step of a save", "last step"])
def test_a_diverged_update_replaces_no_checkpoint_and_no_student(tmp_path, how, step):
    trainer = make_trainer(tmp_path, max_steps=5, logging_steps=10, callbacks=[Diverge(step, how)])
    message = rf"^`[\w.]+` is not finite at the end of step {step}; written to "
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    saved = {"checkpoint-2"} if step == 4 else {"checkpoint-2", "checkpoint-4"}
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == saved
    with pytest.raises(FloatingPointError, match=message):
        trainer.save_model()
    assert {name for name in files_in(tmp_path) if "/" not in name} == {"non_finite_loss_rank0.json"}


def test_a_diverged_run_is_not_evaluated_or_logged_again(tmp_path):
    """Step 2 spoils the weights, step 3 has the first bad loss, step 4 is the next log."""
    data = {"eval_dataset": make_trainer(tmp_path / "other").train_dataset, "eval_strategy": "steps", "eval_steps": 4}
    trainer = make_trainer(
        tmp_path / "run", max_steps=8, logging_steps=4, save_steps=8, callbacks=[Diverge(2, "gradient")], **data
    )
    with pytest.raises(FloatingPointError, match=r"^`kd_loss` is not finite at step 3 \(batch 3 of this session\)"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.log_history == []
