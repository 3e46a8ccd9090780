"""The progress of a run on the console: one aligned line for each log, with the time that is left."""

import textwrap
import time
from typing import Any

from tqdm import tqdm
from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

WIDTH = 80
_CELL, _END = 8, ("learning_rate", "eta")
_RATIO = "_outlier_ratio"
_TITLES = {"learning_rate": "lr", "eta": "ETA"}
_NO_METRICS = ("_runtime", "_per_second", "_preparation_time")
LEGEND = "teacher, refined, student: p99 / median patch norm, always of the same images"


def show_own_progress(trainer: Trainer) -> None:
    """Replaces the progress of `Trainer` by lines and tables with all losses; with ``disable_tqdm`` it stays.

    Args:
        trainer: A trainer whose constructor is done.
    """
    own = [item for item in trainer.callback_handler.callbacks if type(item) is DEFAULT_PROGRESS_CALLBACK]
    if not own:
        return
    trainer.remove_callback(own[0])
    if issubclass(DEFAULT_PROGRESS_CALLBACK, ProgressCallback):
        trainer.add_callback(LineProgress())
    else:
        from singer_hf.training.logs.notebook import TableProgress  # needs IPython

        trainer.add_callback(TableProgress())


class LineProgress(ProgressCallback):
    """Prints a line of at most 80 characters per log: step, losses, outlier ratios, learning rate, time left.

    Everything that is logged, also what finds no place, is in ``trainer_state.json`` and in the reports.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        super().on_train_begin(args, state, control, **kwargs)
        self._begin, self._first_step, self._header = time.monotonic(), state.global_step, ""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints the line, and a header before the first one."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" not in logs:
            lines = other_lines(logs, state.global_step)
        else:
            header, line = table_lines(logs, state.global_step, state.max_steps, self._time_left(state))
            legend = [LEGEND] if any(name.endswith(_RATIO) for name in logs) else []
            lines = [line] if header == self._header else [*legend, header, line]
            self._header = header
        for line in lines:
            self.training_bar.write(line)

    def _time_left(self, state: TrainerState) -> float:
        done = max(state.global_step - self._first_step, 1)
        return (time.monotonic() - self._begin) / done * (state.max_steps - state.global_step)


def table_lines(logs: dict[str, Any], step: int, max_steps: int, seconds_left: float) -> tuple[str, str]:
    """Header and line of a log with losses, at most 80 characters each; values that find no place are left out.

    Args:
        logs: The log.
        step: Optimiser steps made.
        max_steps: Steps of the run.
        seconds_left: Time to its end.
    """
    middle = ["loss", *(n for n in logs if n.endswith("_loss")), *(n for n in logs if n.endswith(_RATIO))]
    cells = {name: (_title(name), _number(name, logs[name])) for name in (*middle, "learning_rate") if name in logs}
    cells["eta"] = "ETA", tqdm.format_interval(seconds_left)
    first = max(len("step"), len(str(max_steps)))
    widths = {name: max(_CELL, len(title) + 1, len(value) + 1) for name, (title, value) in cells.items()}
    room = WIDTH - first - sum(widths[name] for name in _END if name in cells)
    shown = []
    for name in cells:
        room -= 0 if name in _END else widths[name]
        if name in _END or room >= 0:
            shown.append(name)
    lines = ("".join(cells[name][part].rjust(widths[name]) for name in shown) for part in (0, 1))
    header, line = lines
    return f"{'step':>{first}}{header}", f"{step:>{first}}{line}"


def other_lines(logs: dict[str, Any], step: int) -> list[str]:
    """Lines for the metrics of an evaluation, the end of the training, and anything else that is logged.

    Args:
        logs: The log.
        step: Optimiser steps made.
    """
    if "train_runtime" in logs:
        speed = f"{logs['train_samples_per_second']:.3g} images a second" if "train_samples_per_second" in logs else ""
        return [f"trained for {tqdm.format_interval(logs['train_runtime'])}, {speed}".rstrip(", ")]
    values = {name: value for name, value in logs.items() if name != "epoch" and not name.endswith(_NO_METRICS)}
    start = f"evaluation at step {step}: " if any(name.startswith("eval_") for name in values) else f"step {step}: "
    texts = [f"{_title(name.removeprefix('eval_'))} {_plain(value)}" for name, value in values.items()]
    return textwrap.wrap(start + ", ".join(texts), WIDTH, subsequent_indent="  ")


def _title(name: str) -> str:
    return _TITLES.get(name, name.removesuffix("_loss").removesuffix(_RATIO))


def _number(name: str, value: float) -> str:
    text = f"{value:.2f}" if name.endswith(_RATIO) else f"{value:.4g}"
    return text if len(text) < _CELL else f"{value:.1e}"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
