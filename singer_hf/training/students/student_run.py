"""What concerns one student of a run: its distiller, weights, folder and part of the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from singer_hf.distillation.feature_distiller import FeatureDistiller

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class StudentState:
    """The state of a trainer as one of its students sees it.

    Attributes:
        log_history: The log with its own losses and metrics under their plain names, without those of others.
        global_step: Steps made.
        epoch: Epochs made.
    """

    log_history: list[dict[str, Any]]
    global_step: int
    epoch: float | None


class StudentRun:
    """One student of a run. All that does not concern a single student is the trainer's own attribute.

    Args:
        trainer: The trainer.
        name: Name of the student; empty for the only one, whose folder and log are those of the run.
        average: Its moving average, if the run keeps one.
    """

    def __init__(self, trainer: "Trainer", name: str, average: nn.Module | None) -> None:
        self.trainer, self.name, self.average = trainer, name, average

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)

    @property
    def distiller(self) -> FeatureDistiller:
        """The student's distiller without any wrapper."""
        whole = self.trainer.distiller
        return whole.members[self.name] if self.name else whole

    @property
    def student(self) -> PreTrainedModel:
        """The model that is evaluated and saved: the student, or its moving average."""
        return self.distiller.student if self.average is None else self.average

    @property
    def state(self) -> Any:
        """The trainer's state, with the part of the log that concerns this student."""
        state = self.trainer.state
        if not self.name:
            return state
        others = [name for name in self.trainer.runs if name != self.name]
        history = [own_metrics(row, self.name, others) for row in state.log_history]
        return StudentState(history, state.global_step, state.epoch)

    @property
    def hub_model_id(self) -> str | None:
        """Repository of the student."""
        return student_repo(self.trainer.hub_model_id, self.name)

    def named(self, metrics: Mapping[str, float], shared: Sequence[str] = ()) -> dict[str, float]:
        """Metrics of this student by their names in the log of the run, with the student's name in front.

        Args:
            metrics: Values by plain name.
            shared: Names that keep to be plain.
        """
        return {f"{self.name}_{key}" if self.name and key not in shared else key: v for key, v in metrics.items()}

    def folder(self, output_dir: str | Path) -> Path:
        """The student's folder in the run's folder or in a checkpoint."""
        return Path(output_dir) / self.name


def own_metrics(row: Mapping[str, Any], name: str, others: list[str]) -> dict[str, Any]:
    """One row of the log as a student sees it: ``eval_<name>_top1`` becomes ``eval_top1``.

    Args:
        row: Values by name.
        name: Name of the student.
        others: Names of the other students, whose values are left out.
    """
    own = {}
    for key, value in row.items():
        stage = "eval_" if key.startswith("eval_") else ""
        metric = key.removeprefix(stage)
        owner = max((n for n in (name, *others) if metric.startswith(f"{n}_")), key=len, default=None)
        if owner == name:
            own[stage + metric.removeprefix(f"{name}_")] = value
        elif owner is None:
            own.setdefault(key, value)
    return own


def student_repo(repo_id: str | None, name: str) -> str | None:
    """The repository of one of several students, ``user/repo-name``.

    Args:
        repo_id: Repository of the run, or None.
        name: Name of the student; empty for the only one.
    """
    return f"{repo_id}-{name}" if repo_id and name else repo_id
