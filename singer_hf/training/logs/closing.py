"""What the screen says at the end of a run."""

import shlex
from typing import TYPE_CHECKING

from singer_hf.cards.licences import license_warning
from singer_hf.training.run_card import NORMS, lacks_pooler, run_evaluations

if TYPE_CHECKING:
    from singer_hf.training.students.student_run import StudentRun

_ROW = "  {:<50}{:>11}{:>11}"


def closing_lines(run: "StudentRun") -> list[str]:
    """Returns what the screen says at the end of a run: what it did, where it lies, and the next commands.

    Args:
        run: One student of a finished run.
    """
    folder = str(run.folder(run.args.output_dir))
    dataset = run.run_facts.get("dataset") or "IMAGES"
    models = " ".join(shlex.quote(name) for name in (run.teacher_name, folder) if name)
    audit = f"singer-hf audit --model_name_or_path {models} --dataset_name {shlex.quote(dataset)}"
    pooler = ", add_pooling_layer=False" if lacks_pooler(run.student) else ""
    place = shlex.quote(folder)
    warning = license_warning(run.args.license, run.teacher_name)
    return [
        f"Finished after {run.state.global_step} steps.",
        *_table(run),
        f"The student, its card and what the run saved: {folder}",
        *([f"Before you publish it: {warning}"] if warning else []),
        "Next:",
        f'  load      AutoModel.from_pretrained("{folder}"{pooler})',
        f"  audit     {audit} --output_dir {shlex.quote(f'{folder}/audit')}",
        f"  evaluate  singer-hf evaluate --model_name_or_path {place} --task knn --dataset_name LABELLED_IMAGES",
        f'  upload    hf upload USER/NAME {place} --exclude "checkpoint-*"',
    ]


def _table(run: "StudentRun") -> list[str]:
    """The artifacts, the probes and the loss at the first and the last log; nothing without a log."""
    history = run.state.log_history
    evaluations = {f"eval_{row.metric}": row for row in run_evaluations(run)}
    names = {name: f"{model}, p99 / median of the patch norms" for name, model in NORMS.items()}
    names |= {name: f"student, {row.metric}" for name, row in evaluations.items()} | {"loss": "loss"}
    rows = []
    for name, shown in names.items():
        values = [row[name] for row in history if name in row]
        if values:
            style = ".2f" if name in NORMS else ".4g" if name == "loss" else ".3f"
            last = evaluations[name].value if name in evaluations else values[-1]  # the best, where that was loaded
            rows.append(_ROW.format(shown, format(values[0], style), format(last, style)))
    return [_ROW.format("", "first log", "last log"), *rows] if rows else []
