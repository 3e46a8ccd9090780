"""The model card of a run, filled from the Trainer's own record of it."""

from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from singer_hf.cards.student_card import CardInfo, CardMethod, Evaluation, student_card
from singer_hf.distillation.distiller import SingerDistiller
from singer_hf.distillation.summary import has_test_time_registers
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.training.loss_averages import COMPONENTS, EXTRA_COMPONENTS

if TYPE_CHECKING:
    from transformers import Trainer

# Settings of the machine and of the logs say nothing about the student.
_SHOWN_SETTINGS = {
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "optim", "bf16", "fp16", "seed"),
    *("distillation", "kd_weight", "student_layers", "teacher_layers", "color_jitter", "ema_decay"),
}
_SHOWN_WITH_ADAPTERS = {
    *("outlier_weight", "info_weight", "outlier_quantile", "info_loss", "detach_refined", "adapter_warmup_steps"),
}
_SHOWN_WITH_VITKD = {"mask_ratio", "generation_weight"}
_VITKD = CardMethod(
    "vitkd",
    "with ViTKD ([paper](https://arxiv.org/abs/2209.02432)): the student matched the teacher's features of shallow "
    "blocks as they are, and those of its deepest block were generated from the student's with a part of its patches "
    "masked; tokens of very high norm were not treated.",
)
_PLAIN = (bool, int, float, str, tuple)
_NORMS = {
    "teacher_outlier_ratio": "teacher",
    "refined_outlier_ratio": "refined teacher",
    "student_outlier_ratio": "student",
}


def write_card(trainer: "Trainer", folder: str | Path) -> None:
    """Writes ``README.md`` into ``folder``.

    Args:
        trainer: The trainer; its ``run_facts`` win over what is read off it.
        folder: The run's folder or a checkpoint.
    """
    student_card(card_info(trainer, folder)).save(Path(folder) / "README.md")


def card_info(trainer: "Trainer", folder: str | Path) -> CardInfo:
    """What the trainer knows about its run."""
    distiller: SingerDistiller = trainer.distiller
    history = trainer.state.log_history
    facts = {
        "student_class": type(distiller.student).__name__,
        "student": _origin(distiller.student),
        "teacher": trainer.teacher_name or "",
        "teacher_class": type(distiller.teacher_view.backbone).__name__,
        "repo_id": trainer.hub_model_id if "/" in (trainer.hub_model_id or "") else "",
        "has_adapter": distiller.has_adapters,
        "method": _method(trainer),
        "num_images": _num_images(trainer),
        "num_steps": trainer.state.global_step,
        "num_epochs": trainer.state.epoch and round(trainer.state.epoch, 2),
        "image_size": distiller.teacher_input.image_size[0],
        "settings": _settings(trainer.args, distiller.has_adapters) | _adapter_settings(distiller),
        "layer_pairs": list(zip(distiller.teacher_layers, distiller.student_layers, strict=True)),
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


def _method(trainer: "Trainer") -> CardMethod | None:
    """The method in words where the card cannot know it: neither SiNGER nor FitNet."""
    if trainer.args.distillation == "vitkd":
        return _VITKD
    distiller: SingerDistiller = trainer.distiller
    if distiller.refiner is not None:
        return _cleaned_by(_in_words(distiller.refiner))
    if has_test_time_registers(distiller.teacher_view):
        return _cleaned_by(
            "a test-time register ([paper](https://arxiv.org/abs/2506.08010)), a token that takes them off the patches"
        )
    return None


def _cleaned_by(cleaner: str) -> CardMethod:
    return CardMethod(
        "feature-distillation",
        "by matching features of several blocks: the student learned the teacher's features, whose tokens of very "
        f"high norm were cleaned by {cleaner}.",
    )


def _in_words(setting: Any) -> str:
    """A setting in words; a clean-up or a rule by its name and what differs from its own defaults."""
    if isinstance(setting, _PLAIN):
        return str(setting)
    name = f"`{type(setting).__name__}`"
    given = fields(setting) if is_dataclass(setting) else ()
    values = {item.name: getattr(setting, item.name) for item in given if _is_worth_a_word(setting, item)}
    return name + (f" ({', '.join(f'`{key}` {_in_words(value)}' for key, value in values.items())})" if values else "")


def _is_worth_a_word(setting: Any, item: Field) -> bool:
    value = getattr(setting, item.name)
    return (isinstance(value, _PLAIN) or is_dataclass(value)) and value != item.default


def _settings(args: SingerTrainingArguments, has_adapters: bool) -> dict[str, Any]:
    names = _SHOWN_SETTINGS | (_SHOWN_WITH_ADAPTERS if has_adapters else set())
    names |= _SHOWN_WITH_VITKD if args.distillation == "vitkd" else set()
    # Compared field by field: making a second set of arguments would reset the process's accelerator state.
    shown = (item for item in fields(args) if item.name in names)
    return {
        item.name: getattr(args, item.name) for item in shown if getattr(args, item.name) not in (None, item.default)
    }


def _adapter_settings(distiller: SingerDistiller) -> dict[str, Any]:
    if not distiller.has_adapters:
        return {}
    config = distiller.teacher.peft_config[distiller.teacher.active_adapter]
    names = ("r", "layers_to_transform", "init_weights", "nullspace_source", "init_scale")
    return {f"adapter {name}": getattr(config, name) for name in names}


def _loss_curve(history: list[dict[str, float]]) -> list[dict[str, float]]:
    names = ("step", "loss", *COMPONENTS, *EXTRA_COMPONENTS)
    return [{name: row[name] for name in names if name in row} for row in history if "loss" in row]


def _last_norms(history: list[dict[str, float]]) -> dict[str, float]:
    row = next((row for row in reversed(history) if "student_outlier_ratio" in row), {})
    return {shown: row[name] for name, shown in _NORMS.items() if name in row}


def _evaluations(history: list[dict[str, float]], dataset: str) -> list[Evaluation]:
    """The last evaluation's figures but for losses and speeds."""
    row = next((row for row in reversed(history) if "eval_loss" in row), {})
    plain = ("loss", "per_second", "runtime", "preparation_time")
    return [
        Evaluation(_task(name), dataset or "evaluation set", name.removeprefix("eval_"), value)
        for name, value in row.items()
        if name.startswith("eval_") and not name.endswith(plain)
    ]


def _task(figure: str) -> str:
    """The task of an evaluator's figure by the metric in its name."""
    tasks = {"top1": "classification", "top5": "classification", "mean_iou": "segmentation", "rmse": "depth"}
    return next((task for metric, task in tasks.items() if metric in figure), "image-feature-extraction")
