"""Arguments of a distillation run."""

import math
import os
from dataclasses import dataclass, field

import torch

from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.losses import KD_LOSSES, TARGET_NORMS, check_kd_settings
from singer_hf.training.adapter.base_arguments import AdapterArguments

_SHARE = 0.05
# As published.
_RATE, _BATCH = 1e-3, 512
_CROPS = 4  # in a cache of features


@dataclass
class SingerTrainingArguments(AdapterArguments):
    """`transformers.TrainingArguments` plus the objective, with the recommended settings as defaults.

    Differences from the base class: the learning rate follows the batch (see below); a cosine schedule that ends at
    1e-4 of the peak, and a warm-up over 5 % of the steps, as published; a log every 1 % of the steps, an evaluation
    and a checkpoint every 5 %; ``bf16`` and ``tf32`` on GPUs that have them; and those of
    :class:`singer_hf.training.adapter.base_arguments.AdapterArguments`, whose fields it has too.

    Args:
        learning_rate: Peak learning rate at the batch that is used. None: 1e-3 for 512 images a step in all processes
            (as published), times the square root of batch / 512 for other batches (arXiv 2205.10287).
        warmup_steps: Steps of the warm-up; below 1 the share of all steps. ``logging_steps``, ``save_steps`` and
            ``eval_steps`` likewise.
        bf16: Whether the training runs in bfloat16 with weights in float32. None: on NVIDIA GPUs from Ampere on and
            the like, unless ``fp16``, ``use_cpu`` or the launcher says otherwise.
        tf32: Whether float32 products use TF32. None: on the same GPUs.
        kd_weight: Weight of L_KD, >= 0.
        kd_loss: Distance of L_KD: ``"mse"`` (paper), ``"cosine"`` or ``"smooth_l1"``.
        target_norm: Normalisation of the targets of L_KD: ``"none"`` (paper), ``"token"``, ``"channel"`` or
            ``"channel_token"``.
        detach_refined: Whether L_KD has no gradient to the adapter.
        adapter_warmup_steps: Number of first steps in which L_KD has weight 0, so that the adapter is trained before
            the student; >= 0. They are part of the run's steps.
        teacher_layers: Distilled blocks of a teacher without adapters.
        student_layers: Student block for each distilled teacher block; default by relative depth.
        ema_decay: Decay per step, in (0, 1), of an exponential moving average of the student, which is then evaluated,
            saved and pushed. None: off.
        num_artifact_images: Training images, drawn by the seed and the same at every log, without augmentation, on
            which outlier ratios and adapter leakage are logged; 0 is off.
        compile_teacher: Whether the teacher alone is compiled; ``torch_compile`` compiles the student with it.
        cache_teacher_features: Folder, outside of ``output_dir``, in which the teacher's features are kept as float16,
            so that the teacher runs in the first ``num_cached_crops`` epochs only; epoch e has the crops of epoch e
            modulo that number. For a list of images, methods ``singer`` and ``fitnet``. None: off.
        num_cached_crops: Crops of each image in the cache, >= 1. None: 4.

    Raises:
        ValueError: If a value is out of its range.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the student and its checkpoints. Default: trainer_output."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate. Default: 1e-3 x sqrt(images per step / 512)."}
    )
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of the warm-up; below 1 their share."})
    logging_steps: float = field(default=0.01, metadata={"help": "Log every so many steps; below 1 their share."})
    save_steps: float = field(default=_SHARE, metadata={"help": "Save every so many steps; below 1 their share."})
    eval_steps: float | None = field(default=_SHARE, metadata={"help": "Evaluate likewise, with `eval_strategy`."})
    bf16: bool | None = field(default=None, metadata={"help": "Train in bfloat16. Default: where the GPU has it."})
    tf32: bool | None = field(default=None, metadata={"help": "Use TF32. Default: where the GPU has it."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Learning rate schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"min_lr_rate": 1e-4}, metadata={"help": "Extra arguments of the schedule."}
    )

    kd_weight: float = field(
        default=OBJECTIVE["kd_weight"], metadata={"help": "Weight of the distillation loss L_KD, >= 0."}
    )
    kd_loss: str = field(
        default=OBJECTIVE["kd_loss"], metadata={"help": f"Distance of L_KD, one of {', '.join(KD_LOSSES)}."}
    )
    target_norm: str = field(
        default=OBJECTIVE["target_norm"],
        metadata={"help": f"Normalisation of the targets, one of {', '.join(TARGET_NORMS)}."},
    )
    detach_refined: bool = field(
        default=OBJECTIVE["detach_refined"], metadata={"help": "Keep L_KD from training the adapter."}
    )
    adapter_warmup_steps: int = field(default=0, metadata={"help": "First steps that train the adapter alone."})
    teacher_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Distilled blocks of a teacher without adapters. Default: as `--layers_to_transform`."},
    )
    student_layers: list[int] | None = field(
        default=None, metadata={"help": "Student blocks paired with the distilled ones. Default: by relative depth."}
    )
    ema_decay: float | None = field(default=None, metadata={"help": "Decay of the student's running average."})
    num_artifact_images: int = field(default=8, metadata={"help": "Images measured for artifacts at every log."})
    compile_teacher: bool = field(default=False, metadata={"help": "Compile the teacher, apart from the student."})
    cache_teacher_features: str | None = field(
        default=None, metadata={"help": "Folder for the teacher's features of a few crops of each image."}
    )
    num_cached_crops: int | None = field(
        default=None, metadata={"help": "Crops of each image in that folder. Default: 4."}
    )

    def __post_init__(self) -> None:
        self.bf16, self.tf32 = choose_precision(self.bf16, self.tf32, self.use_cpu, self.fp16)
        self._choose_steps()
        super().__post_init__()
        if self.learning_rate is None:
            self.learning_rate = rate_of_batch(self.images_per_step)
        check_kd_settings(self.kd_weight, self.kd_loss, self.target_norm)
        if self.adapter_warmup_steps < 0:
            raise ValueError(f"`adapter_warmup_steps` must be at least 0, got {self.adapter_warmup_steps!r}")
        if self.max_steps > 0:
            check_warmup(self.adapter_warmup_steps, self.max_steps)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie in (0, 1), got {self.ema_decay!r}; leave it out for no average")
        if self.compile_teacher and self.torch_compile:
            raise ValueError("`compile_teacher` must be left out with `torch_compile`, which compiles the teacher too")
        self._check_cache()
        if self.num_artifact_images < 0:
            raise ValueError(f"`num_artifact_images` must be at least 0, got {self.num_artifact_images!r}")

    def _check_cache(self) -> None:
        if self.cache_teacher_features is None and self.num_cached_crops is not None:
            raise ValueError("`num_cached_crops` needs `cache_teacher_features`, the folder of the cache")
        if self.cache_teacher_features is not None and self.num_cached_crops is None:
            self.num_cached_crops = _CROPS
        if self.num_cached_crops is not None and self.num_cached_crops < 1:
            raise ValueError(f"`num_cached_crops` must be at least 1, got {self.num_cached_crops!r}")

    def _choose_steps(self) -> None:
        """The best checkpoint must have been evaluated: what is given for one of the two holds for the other."""
        if self.load_best_model_at_end and self.save_steps != self.eval_steps:
            if self.save_steps == _SHARE and self.eval_steps:
                self.save_steps = self.eval_steps
            elif self.eval_steps == _SHARE:
                self.eval_steps = self.save_steps


def rate_of_batch(images: int) -> float:
    """The learning rate of AdamW for a number of images per step: 1e-3 for 512, with the square root of the number.

    Args:
        images: Images per step in all processes together.
    """
    return _RATE * math.sqrt(images / _BATCH)


def choose_precision(
    bf16: bool | None, tf32: bool | None, use_cpu: bool = False, fp16: bool = False
) -> tuple[bool, bool | None]:
    """Returns ``bf16`` and ``tf32``; where they are None they follow the GPU, and the launcher's mixed precision.

    Args:
        bf16: What is given, or None.
        tf32: What is given, or None.
        use_cpu: Whether no GPU is used.
        fp16: Whether float16 was asked for.
    """
    able = not use_cpu and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    chosen = able and not fp16 and not launched if bf16 is None else bf16
    return chosen, True if tf32 is None and able else tf32


def check_warmup(num_steps: int, max_steps: int) -> None:
    """Checks that the adapter's warm-up leaves steps for the student.

    Args:
        num_steps: Steps of the warm-up.
        max_steps: Steps of the run.

    Raises:
        ValueError: If it does not.
    """
    if num_steps and num_steps >= max_steps:
        raise ValueError(
            f"`adapter_warmup_steps` must be less than the {max_steps} steps of the run, or the student is not "
            f"trained, got {num_steps}"
        )
