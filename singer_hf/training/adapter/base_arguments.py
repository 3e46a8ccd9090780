"""What the arguments of all trainings with adapters have in common: loading, the adapter's objective, a dry run."""

import json
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from singer_hf.cards.licences import check_license
from singer_hf.cards.privacy import without_paths
from singer_hf.data.workers import choose_num_workers
from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.losses import INFO_LOSSES, OUTLIER_LOSSES


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

    @property
    def images_per_step(self) -> int:
        """Images of an optimiser step in all processes together."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

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
class AdapterArguments(LoadingArguments):
    """Arguments of a training in which adapters are trained, with a student or alone.

    Differences from `transformers.TrainingArguments`: ``weight_decay`` 1e-4; no gradient clipping (the adapter's
    gradient norm is much larger than a student's, so a joint clip would slow the student down); two checkpoints and
    all columns are kept; batches are copied to the device while it works; a loss that is not finite stops the run
    instead of being filtered from the log; loading processes as in :class:`LoadingArguments`.

    Args:
        outlier_weight: λ_outlier, >= 0.
        info_weight: λ_info, >= 0.
        outlier_quantile: γ in (0, 1), for the outlier losses other than ``"neighbors"``.
        outlier_loss: ``"neighbors"``, ``"relative"`` or ``"absolute"`` (paper).
        info_loss: ``"gram"`` (paper) or ``"reference"`` (released code).
        info_share: Share of the images that L_info is taken of in a step, in (0, 1], at least one image; other images
            in every step, so its expectation is that of all.
        color_jitter: Strength of brightness, contrast and saturation jitter, >= 0; 0 is off.
        overwrite_output_dir: Whether to train into an output folder that holds another run.
        dry_run: Whether the run ends after ten steps with an outlook (speed, loader, memory, time), without saving.

    Raises:
        ValueError: If a value is out of its range.
    """

    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of AdamW."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the joint gradient norm; 0 is off."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints that are kept."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Must stay off."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Must stay off: such a loss ends the run."})

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
        metadata={"help": f"Form of the outlier loss, one of {', '.join(OUTLIER_LOSSES)}."},
    )
    info_loss: str = field(default=OBJECTIVE["info_loss"], metadata={"help": f"One of {', '.join(INFO_LOSSES)}."})
    info_share: float = field(
        default=OBJECTIVE["info_share"],
        metadata={"help": "Share of the images that the information loss is taken of."},
    )
    color_jitter: float = field(default=0.0, metadata={"help": "Strength of the colour jitter; 0 is off."})
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
        self.objective()
        if self.color_jitter < 0:
            raise ValueError(f"`color_jitter` must be at least 0, got {self.color_jitter!r}")
        self._check_trainer_options()

    def objective(self) -> AdapterObjective:
        """The terms that train the adapters.

        Raises:
            ValueError: If a value is out of its range.
        """
        return AdapterObjective(
            self.outlier_weight,
            self.info_weight,
            self.outlier_quantile,
            self.outlier_loss,
            self.info_loss,
            self.info_share,
        )

    def to_json_string(self) -> str:
        """The arguments as JSON without local folders and tokens, as in ``training_args.json`` and TensorBoard."""
        return json.dumps(without_paths(self.to_dict()), indent=2)

    def _check_trainer_options(self) -> None:
        if self.enable_jit_checkpoint:
            raise ValueError(
                "`enable_jit_checkpoint` must be False: it would publish an unfinished model. SIGTERM and Ctrl-C save "
                "a checkpoint without it"
            )
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: the images would be removed")
        for name, needed in (("label_smoothing_factor", "labels"), ("neftune_noise_alpha", "word embeddings")):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` must be left out, got {getattr(self, name)!r}: it needs {needed}, which a distillation "
                    "does not have"
                )


def copy_without_waiting(args: TrainingArguments) -> None:
    """Lets pinned batches be copied to a GPU while it works; accelerate's default makes every step wait for the last.

    Args:
        args: Arguments without an ``accelerator_config`` of the user's.
    """
    args.accelerator_config.non_blocking = args.dataloader_pin_memory and not torch.mps.is_available()
