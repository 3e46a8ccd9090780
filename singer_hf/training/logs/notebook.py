"""The progress of a run in a notebook: the table of transformers, with all losses and outlier ratios as columns."""

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils.notebook import NotebookProgressCallback

_LEFT_OUT = ("loss", "epoch", "grad_norm", "learning_rate", "total_flos")


class TableProgress(NotebookProgressCallback):
    """`NotebookProgressCallback` whose table has a row for every log of losses, not only for evaluations."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the table with the columns that every row has; others are added when they come."""
        super().on_train_begin(args, state, control, **kwargs)
        self.training_tracker.inner_table = [[self.first_column, "Training Loss"]]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds a row for a log of losses."""
        if "loss" not in logs or self.training_tracker is None:
            return
        place = state.global_step if self.first_column == "Step" else round(state.epoch, 2)
        values = {self.first_column: place, "Training Loss": logs["loss"]}
        values |= {column_title(name): value for name, value in logs.items() if name not in _LEFT_OUT}
        self.training_tracker.write_line(values)


def column_title(name: str) -> str:
    """The title of a column: ``"kd_loss"`` becomes ``"Kd Loss"``, as in the columns of evaluations.

    Args:
        name: Name of the value in the log.
    """
    return name.replace("_", " ").title()
