"""The model card of a run, filled from the Trainer's state."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from singer_hf.cards.hub_metadata import Evaluation
from singer_hf.cards.licences import license_of
from singer_hf.cards.student_card import CardInfo, CardMethod, student_card
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.evaluation.bootstrap import accuracy_interval
from singer_hf.training.guards.settings import teacher_dtype
from singer_hf.vit.naming import architecture_name

if TYPE_CHECKING:
    from transformers import Trainer


# Settings of the machine and of the logs are not part of the card.
_SHOWN_SETTINGS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "optim", "bf16", "fp16", "seed"),
    *("color_jitter", "ema_decay"),
)
_NO_METRICS = ("loss", "per_second", "runtime", "preparation_time")
NORMS = {
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
        "student_name": architecture_name(distiller.student),
        "student_class": type(distiller.student).__name__,
        "without_pooler": lacks_pooler(distiller.student),
        "student": _origin(distiller.student),
        "teacher": trainer.teacher_name or "",
        "teacher_class": type(distiller.teacher_view.backbone).__name__,
        "repo_id": trainer.hub_model_id if "/" in (trainer.hub_model_id or "") else "",
        "has_adapter": bool(distiller.singer_layers),
        "method": _method(trainer),
        "num_images": _num_images(trainer),
        "num_steps": trainer.state.global_step,
        "num_epochs": trainer.state.epoch and round(trainer.state.epoch, 2),
        "image_size": distiller.teacher_input.image_size[0],
        "settings": _settings(trainer),
        "layer_pairs": [pair[:2] for pair in distiller.pairs],
        "loss_curve": _loss_curve(history),
        "norms": _last_norms(history),
        "evaluations": run_evaluations(trainer),
        "license": trainer.args.license or "",
        "teacher_license": license_of(trainer.teacher_name),
    }
    for name in ("loss_figure", "norm_figure"):
        facts[name] = f"{name}.png" if (Path(folder) / f"{name}.png").is_file() else ""
    return CardInfo(**facts | trainer.run_facts)


def lacks_pooler(student: PreTrainedModel) -> bool:
    """Whether the student's class adds a pooling layer, unless told not to, and this student has none.

    Args:
        student: The student.
    """
    parameters = inspect.signature(type(student).__init__).parameters
    return "add_pooling_layer" in parameters and getattr(student, "pooler", None) is None


def _method(trainer: "Trainer") -> CardMethod:
    card = trainer.method.card
    return card if card.label else card._replace(label=trainer.method.name)


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
        if value is not None and (name in objective or (name in _SHOWN_SETTINGS and value != (default or False)))
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
    return {shown: row[name] for name, shown in NORMS.items() if name in row}


def run_evaluations(trainer: "Trainer") -> list[Evaluation]:
    """Returns the metrics of the student as it is now, except losses and speeds, and none of an earlier step.

    Args:
        trainer: The trainer of the run.
    """
    step = trainer.loaded_steps.get(getattr(trainer, "name", ""), trainer.state.global_step)
    rows = [row for row in trainer.state.log_history if "eval_loss" in row and row.get("step") == step]
    sizes = {name: n for evaluator in trainer.evaluators for name, n in getattr(evaluator, "sizes", {}).items()}
    return [
        _evaluation(trainer, name.removeprefix("eval_"), value, sizes)
        for name, value in (rows[-1] if rows else {}).items()
        if name.startswith("eval_") and not name.endswith(_NO_METRICS)
    ]


def _evaluation(trainer: "Trainer", name: str, value: float, sizes: Mapping[str, int]) -> Evaluation:
    row = Evaluation(_task(name), trainer.run_facts.get("dataset") or "evaluation set", name, value, sizes.get(name))
    if row.n is None or not name.endswith("top1"):
        return row
    low, high = accuracy_interval(value, row.n)
    return row._replace(low=low, high=high)


def _task(name: str) -> str:
    """The task of an evaluator's metric by its name."""
    tasks = {"top1": "classification", "top5": "classification", "mean_iou": "segmentation", "rmse": "depth"}
    return next((task for metric, task in tasks.items() if metric in name), "image-feature-extraction")
