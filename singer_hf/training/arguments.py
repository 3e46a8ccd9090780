"""Arguments of a distillation run."""

from dataclasses import dataclass, field

from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.losses import KD_LOSSES, TARGET_NORMS, check_kd_settings
from singer_hf.training.adapter.base_arguments import AdapterArguments


@dataclass
class SingerTrainingArguments(AdapterArguments):
    """`transformers.TrainingArguments` plus the objective, with the recommended settings as defaults.

    Differences from the base class: ``learning_rate`` 1e-3 and a cosine schedule that ends at 1e-4 of the peak (as
    published; warm-up depends on the run's length and is not set), and those of
    :class:`singer_hf.training.adapter.base_arguments.AdapterArguments`, whose fields it has too.

    Args:
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

    Raises:
        ValueError: If a value is out of its range.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the student and its checkpoints. Default: trainer_output."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kd_settings(self.kd_weight, self.kd_loss, self.target_norm)
        if self.adapter_warmup_steps < 0:
            raise ValueError(f"`adapter_warmup_steps` must be at least 0, got {self.adapter_warmup_steps!r}")
        if self.max_steps > 0:
            check_warmup(self.adapter_warmup_steps, self.max_steps)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie in (0, 1), got {self.ema_decay!r}; leave it out for no average")
        if self.compile_teacher and self.torch_compile:
            raise ValueError("`compile_teacher` must be left out with `torch_compile`, which compiles the teacher too")
        if self.num_artifact_images < 0:
            raise ValueError(f"`num_artifact_images` must be at least 0, got {self.num_artifact_images!r}")


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
