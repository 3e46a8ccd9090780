"""The model card of a run, filled from the Trainer's state."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from singer_hf.cards.hub_metadata import Evaluation
from singer_hf.cards.student_card import CardInfo, student_card
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.training.guards.settings import teacher_dtype

if TYPE_CHECKING:
    from transformers import Trainer

    from singer_hf.training.students.student_run import StudentRun

# Settings of the machine and of the logs are not part of the card.
_SHOWN_SETTINGS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "optim", "bf16", "fp16", "seed"),
    *("color_jitter", "ema_decay"),
)
_NORMS = {
    "teacher_outlier_ratio": "teacher",
    "refined_outlier_ratio": "refined teacher",
    "student_outlier_ratio": "student",
}


def write_card(trainer: "Trainer", folder: str | Path) -> None:
    """Writes ``README.md`` into ``folder``.

    Args:
        trainer: The trainer; its ``run_facts`` replace values of the run.
        folder: The run's folder or a checkpoint.
    """
    student_card(card_info(trainer, folder)).save(Path(folder) / "README.md")


def card_info(trainer: "Trainer", folder: str | Path) -> CardInfo:
    """Returns the content of the card from the trainer's run."""
    distiller: FeatureDistiller = trainer.distiller
    history = trainer.state.log_history
    facts = {
        "student_class": type(distiller.student).__name__,
        "student": _origin(distiller.student),
        "teacher": trainer.teacher_name or "",
        "teacher_class": type(distiller.teacher_view.backbone).__name__,
        "repo_id": trainer.hub_model_id if "/" in (trainer.hub_model_id or "") else "",
        "has_adapter": bool(distiller.singer_layers),
        "method": trainer.method.card,
        "num_images": _num_images(trainer),
        "num_steps": trainer.state.global_step,
        "num_epochs": trainer.state.epoch and round(trainer.state.epoch, 2),
        "image_size": distiller.teacher_input.image_size[0],
        "settings": _settings(trainer),
        "layer_pairs": [pair[:2] for pair in distiller.pairs],
        "loss_curve": _loss_curve(history),
        "norms": _last_norms(history),
        "evaluations": _evaluations(history, trainer.run_facts.get("dataset", "")),
    }
    for name in ("loss_figure", "norm_figure"):
        facts[name] = f"{name}.png" if (Path(folder) / f"{name}.png").is_file() else ""
    return CardInfo(**facts | trainer.run_facts)


def _origin(student: PreTrainedModel) -> str:
    return getattr(student.config, "name_or_path", "") or ""


def _num_images(trainer: "Trainer") -> int | None:
    try:
        return len(trainer.train_dataset)
    except TypeError:
        return None


def _settings(trainer: "Trainer") -> dict[str, Any]:
    """The method's objective, and settings of the run that differ from their defaults."""
    args, objective = trainer.args, trainer.method.used_fields
    # Compared field by field: a second set of arguments would reset the process's accelerator state.
    values = {item.name: (getattr(args, item.name), item.default) for item in fields(args)}
    settings = {
        name: value
        for name, (value, default) in values.items()
        if value is not None and (name in objective or (name in _SHOWN_SETTINGS and value != default))
    }
    dtype = teacher_dtype(trainer.distiller.teacher)
    own = {} if dtype == "float32" else {"teacher dtype": dtype}
    return settings | own | trainer.method.card_settings(trainer.distiller)


def _loss_curve(history: list[dict[str, float]]) -> list[dict[str, float]]:
    names = [name for row in history for name in row if name in ("step", "loss") or name.endswith("_loss")]
    names = [name for name in dict.fromkeys(("step", *names)) if not name.startswith("eval_")]
    return [{name: row[name] for name in names if name in row} for row in history if "loss" in row]


def _last_norms(history: list[dict[str, float]]) -> dict[str, float]:
    row = next((row for row in reversed(history) if "student_outlier_ratio" in row), {})
    return {shown: row[name] for name, shown in _NORMS.items() if name in row}


def _evaluations(history: list[dict[str, float]], dataset: str) -> list[Evaluation]:
    """The metrics of the last evaluation except losses and speeds."""
    row = next((row for row in reversed(history) if "eval_loss" in row), {})
    plain = ("loss", "per_second", "runtime", "preparation_time")
    return [
        Evaluation(_task(name), dataset or "evaluation set", name.removeprefix("eval_"), value)
        for name, value in row.items()
        if name.startswith("eval_") and not name.endswith(plain)
    ]


def _task(name: str) -> str:
    """The task of an evaluator's metric by its name."""
    tasks = {"top1": "classification", "top5": "classification", "mean_iou": "segmentation", "rmse": "depth"}
    return next((task for metric, task in tasks.items() if metric in name), "image-feature-extraction")


def closing_lines(trainer: "StudentRun") -> list[str]:
    """Returns what the screen says at the end of a run: what it did, where it lies, and the next commands.

    Args:
        trainer: One student of a finished run.
    """
    history, folder = trainer.state.log_history, str(trainer.folder(trainer.args.output_dir))
    dataset = trainer.run_facts.get("dataset") or "IMAGES"
    rows = [
        (f"{name}, p99 / median of the patch norms", f"{value:.2f}") for name, value in _last_norms(history).items()
    ]
    rows += [(f"student, {row.metric}", f"{row.value:.3f}") for row in _evaluations(history, dataset)]
    losses = [row["loss"] for row in history if "loss" in row]
    if losses:
        rows.append(("loss, first and last log", f"{losses[0]:.4g} -> {losses[-1]:.4g}"))
    width = max((len(name) for name, _ in rows), default=0)
    models = " ".join(filter(None, (trainer.teacher_name, folder)))
    audit = f"singer-hf audit --model_name_or_path {models} --dataset_name {dataset} --output_dir {folder}/audit"
    return [
        f"Finished after {trainer.state.global_step} steps.",
        *(f"  {name:<{width}}  {value}" for name, value in rows),
        f"The student, its card and what the run saved: {folder}",
        "Next:",
        f'  load      AutoModel.from_pretrained("{folder}")',
        f"  audit     {audit}",
        f"  evaluate  singer-hf evaluate --model_name_or_path {folder} --task knn --dataset_name LABELLED_IMAGES",
        f'  upload    hf upload USER/NAME {folder} --exclude "checkpoint-*"',
    ]
