"""Arguments of a distillation run."""

import json
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from singer_hf.cards.licences import check_license
from singer_hf.cards.privacy import without_paths
from singer_hf.data.workers import choose_num_workers
from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.losses import (
    INFO_LOSSES,
    KD_LOSSES,
    OUTLIER_LOSSES,
    TARGET_NORMS,
    check_kd_settings,
    check_singer_settings,
)


@dataclass
class LoadingArguments(TrainingArguments):
    """`transformers.TrainingArguments` that leave the number of loading processes to the trainer.

    Args:
        dataloader_num_workers: Processes that load images. None: see
            :func:`singer_hf.data.workers.choose_num_workers`.
        dataloader_persistent_workers: Whether they are kept between epochs. None: yes.
        license: Licence of what is trained, for its card: an identifier of the Hub. None: the card states none.
    """

    dataloader_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that load images. Default: one per core; none for streams and few images."},
    )
    dataloader_persistent_workers: bool | None = field(
        default=None, metadata={"help": "Keep the loading processes between epochs. Default: on."}
    )
    license: str | None = field(default=None, metadata={"help": "Licence for the card, such as apache-2.0."})

    def __post_init__(self) -> None:
        given = self.dataloader_num_workers
        self.dataloader_num_workers = 1 if given is None else given  # the base class compares it with numbers
        super().__post_init__()
        self.dataloader_num_workers = given
        check_license(self.license)

    def choose_loading(self, dataset: object) -> None:
        """Sets what is left open about the loading of a training set, and pins no memory without an accelerator."""
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = choose_num_workers(dataset)
            if not self.dataloader_num_workers:
                self.dataloader_persistent_workers, self.dataloader_prefetch_factor = False, None
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type not in ("cpu", "mps")
        if not self.dataloader_pin_memory:
            self.accelerator_config.non_blocking = False  # accelerate warns: only pinned batches are copied so


@dataclass
class SingerTrainingArguments(LoadingArguments):
    """`transformers.TrainingArguments` plus the objective, with the recommended settings as defaults.

    Differences from the base class: ``learning_rate`` 1e-3, ``weight_decay`` 1e-4 and a cosine schedule that ends at
    1e-4 of the peak (as published; warm-up depends on the run's length and is not set); no gradient clipping (the
    adapter's gradient norm is much larger than the student's, so a joint clip would slow the student down); all
    columns are kept; batches are copied to the device while it works; a loss that is not finite stops the run instead
    of being filtered from the log; loading processes as in :class:`LoadingArguments`.

    Args:
        kd_weight: Weight of L_KD, >= 0.
        kd_loss: Distance of L_KD: ``"mse"`` (paper), ``"cosine"`` or ``"smooth_l1"``.
        target_norm: Normalisation of the targets of L_KD: ``"none"`` (paper), ``"token"``, ``"channel"`` or
            ``"channel_token"``.
        outlier_weight: λ_outlier, >= 0.
        info_weight: λ_info, >= 0.
        outlier_quantile: γ in (0, 1).
        outlier_loss: Unit of L_outlier: ``"absolute"`` (paper) or ``"relative"`` to an image's median norm.
        info_loss: ``"gram"`` (paper) or ``"reference"`` (released code).
        info_share: Share of the images that L_info is taken of in a step, in (0, 1], at least one image; other images
            in every step, so its expectation is that of all.
        detach_refined: Whether L_KD has no gradient to the adapter.
        adapter_warmup_steps: Number of first steps in which L_KD has weight 0, so that the adapter is trained before
            the student; >= 0. They are part of the run's steps.
        teacher_layers: Distilled blocks of a teacher without adapters.
        student_layers: Student block for each distilled teacher block; default by relative depth.
        color_jitter: Strength of brightness, contrast and saturation jitter, >= 0; 0 is off.
        ema_decay: Decay per step, in (0, 1), of an exponential moving average of the student, which is then evaluated,
            saved and pushed. None: off.
        num_artifact_images: Images of the last batch on which outlier ratios and adapter leakage are logged; 0 is off.
        compile_teacher: Whether the teacher alone is compiled; ``torch_compile`` compiles the student with it.
        overwrite_output_dir: Whether to train into an output folder that holds another run.
        dry_run: Whether the run ends after ten steps with an outlook (speed, loader, memory, time), without saving.

    Raises:
        ValueError: If a value is out of its range.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the student and its checkpoints. Default: trainer_output."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Learning rate schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"min_lr_rate": 1e-4}, metadata={"help": "Extra arguments of the schedule."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the joint gradient norm; 0 is off."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Must stay off."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Must stay off: such a loss ends the run."})

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
    outlier_weight: float = field(
        default=OBJECTIVE["outlier_weight"], metadata={"help": "Weight of the outlier loss, >= 0."}
    )
    info_weight: float = field(
        default=OBJECTIVE["info_weight"], metadata={"help": "Weight of the information loss, >= 0."}
    )
    outlier_quantile: float = field(
        default=OBJECTIVE["outlier_quantile"], metadata={"help": "Share of patches whose norm is left alone."}
    )
    outlier_loss: str = field(
        default=OBJECTIVE["outlier_loss"],
        metadata={"help": f"Unit of the outlier loss, one of {', '.join(OUTLIER_LOSSES)}."},
    )
    info_loss: str = field(default=OBJECTIVE["info_loss"], metadata={"help": f"One of {', '.join(INFO_LOSSES)}."})
    info_share: float = field(
        default=OBJECTIVE["info_share"],
        metadata={"help": "Share of the images that the information loss is taken of."},
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
    color_jitter: float = field(default=0.0, metadata={"help": "Strength of the colour jitter; 0 is off."})
    ema_decay: float | None = field(default=None, metadata={"help": "Decay of the student's running average."})
    num_artifact_images: int = field(default=8, metadata={"help": "Images measured for artifacts at every log."})
    compile_teacher: bool = field(default=False, metadata={"help": "Compile the teacher, apart from the student."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Train over another run's output folder."})
    dry_run: bool = field(default=False, metadata={"help": "Time ten steps, print the outlook, save nothing."})

    def __post_init__(self) -> None:
        if self.dry_run:
            self.save_strategy, self.eval_strategy = "no", "no"
            self.load_best_model_at_end = self.push_to_hub = False
        given = self.accelerator_config is not None
        super().__post_init__()
        if not given:
            copy_without_waiting(self)
        check_kd_settings(self.kd_weight, self.kd_loss, self.target_norm)
        check_singer_settings(
            self.outlier_weight,
            self.info_weight,
            self.outlier_quantile,
            self.info_loss,
            self.outlier_loss,
            self.info_share,
        )
        if self.adapter_warmup_steps < 0:
            raise ValueError(f"`adapter_warmup_steps` must be at least 0, got {self.adapter_warmup_steps!r}")
        if self.max_steps > 0:
            check_warmup(self.adapter_warmup_steps, self.max_steps)
        if self.enable_jit_checkpoint:
            raise ValueError(
                "`enable_jit_checkpoint` must be False: it would publish the unfinished student. SIGTERM and Ctrl-C "
                "save a checkpoint without it"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie in (0, 1), got {self.ema_decay!r}; leave it out for no average")
        if self.compile_teacher and self.torch_compile:
            raise ValueError("`compile_teacher` must be left out with `torch_compile`, which compiles the teacher too")
        if self.num_artifact_images < 0:
            raise ValueError(f"`num_artifact_images` must be at least 0, got {self.num_artifact_images!r}")
        if self.color_jitter < 0:
            raise ValueError(f"`color_jitter` must be at least 0, got {self.color_jitter!r}")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: the images would be removed")
        for name, needed in (("label_smoothing_factor", "labels"), ("neftune_noise_alpha", "word embeddings")):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` must be left out, got {getattr(self, name)!r}: it needs {needed}, which a distillation "
                    "does not have"
                )

    def to_json_string(self) -> str:
        """The arguments as JSON without local folders and tokens, as in ``training_args.json`` and TensorBoard."""
        return json.dumps(without_paths(self.to_dict()), indent=2)


def copy_without_waiting(args: TrainingArguments) -> None:
    """Lets pinned batches be copied to a GPU while it works; accelerate's default makes every step wait for the last.

    Args:
        args: Arguments without an ``accelerator_config`` of the user's.
    """
    args.accelerator_config.non_blocking = args.dataloader_pin_memory and not torch.mps.is_available()


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
