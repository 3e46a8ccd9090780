"""The best checkpoint of each of several students, from the log of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

# The sum over the students says nothing of one of them.
_SUMS = {"loss": "kd_loss"}


def metric_key(args: TrainingArguments, name: str) -> str:
    """The name in the log of the metric by which the best checkpoint of a student is chosen.

    ``metric_for_best_model`` is the plain name of the metric; "loss" stands for the student's own L_KD.

    Args:
        args: Arguments of the run.
        name: Name of the student.
    """
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    return f"eval_{name}_{_SUMS.get(metric, metric)}"


def best_step(history: Sequence[Mapping[str, Any]], key: str, greater_is_better: bool) -> int | None:
    """The step with the best value of a metric, the first of equal ones; None without any.

    Args:
        history: The log of the run, rows with ``step``.
        key: Name of the metric.
        greater_is_better: Whether larger values are better.
    """
    rows = [row for row in history if key in row]
    sign = 1 if greater_is_better else -1
    return max(rows, key=lambda row: sign * row[key])["step"] if rows else None


def best_steps(trainer: Any) -> dict[str, int | None]:
    """The steps with the best evaluations by the name of the student; None without any.

    Args:
        trainer: A trainer of several students.

    Raises:
        ValueError: If evaluations have no such metric; the message names those there are.
    """
    history = trainer.state.log_history
    evaluations = [row for row in history if any(key.startswith("eval_") for key in row)]
    keys = {name: metric_key(trainer.args, name) for name in trainer.runs}
    for key in keys.values() if evaluations else ():
        if not any(key in row for row in evaluations):
            known = sorted(key for key in evaluations[-1] if key.startswith("eval_"))
            raise ValueError(f"`metric_for_best_model` must be a metric of every student, {key!r} is none of {known}")
    return {name: best_step(history, key, bool(trainer.args.greater_is_better)) for name, key in keys.items()}


def best_checkpoints(trainer: Any, output_dir: str | Path) -> dict[str, str]:
    """The best checkpoints that exist, by the name of the student.

    Args:
        trainer: A trainer of several students.
        output_dir: Folder of the checkpoints.

    Raises:
        ValueError: See :func:`best_steps`.
    """
    folders = {
        name: Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}" for name, step in best_steps(trainer).items()
    }
    return {name: str(folder) for name, folder in folders.items() if folder.is_dir()}
