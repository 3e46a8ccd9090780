"""Settings that a checkpoint belongs to: written beside it, compared when a run is resumed."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainingArguments

from singer_hf.tuner.layer import find_singer_layers
from singer_hf.vit.structure import view_vit

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

SETTINGS_FILE = "run_settings.json"
# Fields of the base class that change the result; its others concern logs, files, workers and speed.
_TRAINER_FIELDS = (
    *("seed", "data_seed", "full_determinism", "bf16", "fp16", "dataloader_drop_last", "train_sampling_strategy"),
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "optim_args"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("load_best_model_at_end", "metric_for_best_model"),
)
_NO_RESULT = (
    *("num_artifact_images", "overwrite_output_dir", "dry_run", "remove_unused_columns", "logging_nan_inf_filter"),
    *("compile_teacher", "license", "cache_teacher_features"),
)
# What version 0.1 did, which had no names for it.
_BEFORE_NAMES = {
    **{"kd_loss": "mse", "target_norm": "none", "outlier_loss": "absolute", "adapter.gate": "none"},
    "info_share": 1.0,
}
_CONSTANT = ("constant", "constant_with_warmup")
# Of configurations: where they come from, and what is resolved when the adapter is attached.
_NOT_COMPARED = (
    *("_name_or_path", "name_or_path", "transformers_version", "peft_version", "dtype", "torch_dtype", "use_cache"),
    *("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "task_type", "library_name"),
    *("layers_to_transform", "num_prefix_tokens", "r", "image_processor_type", "_processor_class", "architectures"),
)


def run_settings(trainer: "Trainer") -> dict[str, Any]:
    """Returns what determines the result of a run by flat names, as JSON values; no paths, logs or speeds."""
    settings = {**common_settings(trainer), "method": trainer.method.name}
    for run in trainer.runs.values():
        own = f"{run.name} " if run.name else ""
        settings |= {
            **_flat("method", trainer.method.run_settings(run.distiller)),
            f"{own}block pairs": [pair[:2] for pair in run.distiller.pairs],
            **_flat(f"{own}student", run.distiller.student.config.to_dict()),
        }
    return json.loads(json.dumps(settings, default=str))


def common_settings(trainer: "Trainer") -> dict[str, Any]:
    """The part of :func:`run_settings` that concerns training, images, teacher and adapter."""
    args, facts, teacher = trainer.args, trainer.run_facts, trainer.distiller.teacher
    settings = {
        **_training(args),
        "images per step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "training images": _length(trainer.train_dataset),
        "dataset": Path(facts["dataset"]).name if facts.get("dataset") else None,
        "dataset revision": facts.get("dataset_revision"),
        "teacher dtype": teacher_dtype(teacher),
        "teacher weights": _digest(teacher),
        **_adapter(teacher),
    }
    if trainer.processing_class is not None:
        settings |= _flat("image processor", trainer.processing_class.to_dict())
    return json.loads(json.dumps(settings, default=str))


def teacher_dtype(teacher: nn.Module) -> str:
    """The floating type of a teacher's own weights, as in ``"bfloat16"``; its adapters stay in float32."""
    return str(view_vit(teacher).patch_embedding.weight.dtype).removeprefix("torch.")


def write_settings(trainer: "Trainer", folder: Path) -> None:
    """Writes the settings of the run into a checkpoint."""
    text = json.dumps(trainer.run_settings or run_settings(trainer), indent=2)
    (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def check_settings(settings: dict[str, Any], checkpoint: str | Path) -> None:
    """Checks that a checkpoint was made with the settings of the run that takes it up.

    Args:
        settings: What :func:`run_settings` returns for the run.
        checkpoint: Folder of the checkpoint.

    Raises:
        ValueError: If a setting differs; the message names each with both values.
    """
    file = Path(checkpoint) / SETTINGS_FILE
    if not file.is_file():
        logger.warning("%s has no %s; its settings cannot be compared with those of this run", checkpoint, file.name)
        return
    saved = _BEFORE_NAMES | json.loads(file.read_text(encoding="utf-8"))
    # A name that only one side has is of another version of a library.
    differing = [name for name in settings if name in saved and settings[name] != saved[name]]
    if differing:
        changes = ", ".join(f"{name} {saved[name]!r} -> {settings[name]!r}" for name in differing)
        raise ValueError(
            f"`resume_from_checkpoint`: {str(checkpoint)!r} was made with other settings: {changes}. Take these back, "
            "or start a new run in another `output_dir`, with the saved student as `model` if it is to be trained on"
        )


def _training(args: TrainingArguments) -> dict[str, Any]:
    inherited = {item.name for item in dataclasses.fields(TrainingArguments)}
    own = [item.name for item in dataclasses.fields(args) if item.name not in (*inherited, *_NO_RESULT)]
    settings = {name: getattr(args, name) for name in (*_TRAINER_FIELDS, *own) if hasattr(args, name)}
    if args.lr_scheduler_type not in _CONSTANT:  # such a run may be made longer
        settings["length"] = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    return settings


def _adapter(teacher: nn.Module) -> dict[str, Any]:
    layers = find_singer_layers(teacher).values()
    if not layers:
        return {}
    name = teacher.active_adapter
    resolved = {
        "adapter.r": [layer.singer_down[name].out_features for layer in layers],
        "adapter.num_prefix_tokens": [layer.num_prefix_tokens[name] for layer in layers],
    }
    return {**resolved, **_flat("adapter", teacher.peft_config[name].to_dict())}


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items() if name not in _NOT_COMPARED}


def _length(dataset: object) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None


def _digest(teacher: nn.Module) -> str:
    """A digest of some values of every weight: enough to tell two teachers of one architecture apart."""
    weights = [value.detach() for name, value in teacher.state_dict().items() if "singer_" not in name]
    samples = [value.flatten()[:: max(1, value.numel() // 64)].float() for value in weights if value.numel()]
    return hashlib.sha256(torch.cat(samples).cpu().numpy().tobytes()).hexdigest()[:16]
