"""Tiny distillation runs for the tests of the trainer, in this process and in others. All offline."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import nn
from zoo import SIZES, tiny_vit

from singer_hf import SingerConfig, SingerDistillationTrainer, SingerTrainingArguments

TESTS = Path(__file__).parent
SMALL = {**SIZES, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "patch_size": 16}
# What a run draws of itself, where it can draw.
FIGURES = {"loss_figure.png", "norm_figure.png"} if importlib.util.find_spec("matplotlib") else set()
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}


def image_dataset(number: int = 24) -> datasets.Dataset:
    """Random images of 40 x 40 pixels with labels."""
    values = np.random.default_rng(0).integers(0, 255, (number, 40, 40, 3), dtype=np.uint8)
    columns = {"image": [Image.fromarray(image) for image in values], "label": [i % 3 for i in range(number)]}
    return datasets.Dataset.from_dict(columns)


def image_processor(mean: float = 0.5, std: float = 0.5) -> hf.ViTImageProcessor:
    size = {"height": 32, "width": 32}
    return hf.ViTImageProcessor(size=size, image_mean=[mean] * 3, image_std=[std] * 3)


def small_student(**config: object) -> hf.DeiTModel:
    """A DeiT of 2 blocks, twice the teacher's patch size, always with the same weights."""
    torch.manual_seed(0)
    return hf.DeiTModel(hf.DeiTConfig(**{**SMALL, **config}), add_pooling_layer=False)


def arguments(output_dir: object, **settings: object) -> SingerTrainingArguments:
    defaults = {
        **QUIET,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "lr_scheduler_type": "constant",
        "lr_scheduler_kwargs": {},
        "seed": 3,
        **{"learning_rate": 1e-3, "warmup_steps": 0, "save_total_limit": None},
    }
    return SingerTrainingArguments(output_dir=str(output_dir), **{**defaults, **settings})


def adapter(**config: object) -> SingerConfig:
    """After blocks 1 and 3; every token is refined, and visibly."""
    return SingerConfig(**{"r": 4, "layers_to_transform": [1, 3], "init_scale": 1.0, "gate": "none", **config})


def make_trainer(output_dir: object, *, bare: bool = False, **options: object) -> SingerDistillationTrainer:
    """A trainer of the small student and a ViT of 4 blocks.

    Args:
        output_dir: Folder of the run.
        bare: A teacher without adapters.
        **options: Arguments of the trainer by their names; all others are training arguments.
    """
    defaults = {
        "model": None,
        "teacher_model": None,
        "train_dataset": image_dataset(),
        "processing_class": image_processor(),
        "teacher_processing_class": image_processor(0.4, 0.2),
        "peft_config": None if bare else adapter(),
    }
    extra = ("eval_dataset", "evaluators", "image_column", "callbacks", "run_facts", "data_collator", "method")
    names = (*defaults, *extra)
    given = {name: options.pop(name) for name in names if name in options}
    settings = {**defaults, **given}
    settings["model"] = small_student() if settings["model"] is None else settings["model"]
    settings["teacher_model"] = tiny_vit() if settings["teacher_model"] is None else settings["teacher_model"]
    torch.manual_seed(1)  # the projectors' weights
    return SingerDistillationTrainer(args=arguments(output_dir, **options), **settings)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    """Names whose tensors are not bit for bit equal."""
    assert first.keys() == second.keys()
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


def files_in(folder: Path) -> set[str]:
    """Paths of all files, but for those that tell of a checkpoint's own making."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run_script(script: str, *arguments: object, launcher: tuple[str, ...] = (), **environment: str) -> dict:
    """Runs Python code in a process of its own; what it printed as JSON in its last line."""
    process = start_script(script, *arguments, launcher=launcher, **environment)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr[-4000:]
    return json.loads(stdout.splitlines()[-1])


def start_script(
    script: str, *arguments: object, launcher: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen:
    file = TESTS / script
    paths = [str(TESTS), str(TESTS.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **environment}
    command = [sys.executable, *launcher, str(file), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def make_resumable(output_dir: object, **options: object) -> SingerDistillationTrainer:
    """A run over several epochs with dropout in the student and the published schedule."""
    torch.set_num_threads(1)
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 1e-4}}
    length = {"train_dataset": image_dataset(20), "max_steps": 8, "num_artifact_images": 0}
    return make_trainer(output_dir, **{"model": small_student(**dropout), **length, **schedule, **options})


class StopAt(hf.TrainerCallback):
    """Ends the training after a step, as Ctrl-C or a queue's time limit would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def images_seen(trainer: SingerDistillationTrainer) -> list[tuple[int, str]]:
    """A list that fills with (steps done, digest of the images) of every training batch."""
    # No cycle: persistent workers take seconds to end when the garbage collector ends them.
    seen, owner = [], weakref.proxy(trainer)

    def note(module: nn.Module, args: tuple) -> None:
        if module.training:
            seen.append((owner.state.global_step, hashlib.sha256(args[0].numpy().tobytes()).hexdigest()))

    trainer.distiller.register_forward_pre_hook(note)
    return seen


ROOT_FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_args.json"}

SAVED = ROOT_FILES | {
    "projectors/model.safetensors",
    "singer/README.md",
    "singer/adapter_config.json",
    "singer/adapter_model.safetensors",
    "target_norms/model.safetensors",
}

RESUMING = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run_settings.json"}

COMPONENTS = ("kd_loss", "outlier_loss", "info_loss")


def training_rows(trainer):
    return [row for row in trainer.state.log_history if "loss" in row]
