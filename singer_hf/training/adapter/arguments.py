"""Arguments of the training of an adapter alone."""

import json
from dataclasses import dataclass, field

from singer_hf.cards.privacy import without_paths
from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.losses import INFO_LOSSES, OUTLIER_LOSSES
from singer_hf.training.arguments import LoadingArguments, copy_without_waiting


@dataclass
class CleaningArguments(LoadingArguments):
    """`transformers.TrainingArguments` plus the objective of the adapter.

    Differences from the base class: ``output_dir`` is "outputs/cleaned"; 300 steps of 32 images, ``learning_rate``
    2e-3 with a cosine schedule, AdamW with ``weight_decay`` 1e-4, no gradient clipping, at most two checkpoints are
    kept; all columns are kept; batches are copied to the device while it works; a loss that is not finite stops the
    run instead of being filtered from the log; loading processes as in
    :class:`singer_hf.training.arguments.LoadingArguments`.

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

    Raises:
        ValueError: If a value is out of its range.
    """

    output_dir: str | None = field(default="outputs/cleaned", metadata={"help": "Folder of the adapter."})
    max_steps: int = field(default=300, metadata={"help": "Number of steps; -1 for `num_train_epochs`."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images per step and device."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the gradient norm; 0 is off."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
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
        default=OBJECTIVE["outlier_loss"], metadata={"help": f"One of {', '.join(OUTLIER_LOSSES)}."}
    )
    info_loss: str = field(default=OBJECTIVE["info_loss"], metadata={"help": f"One of {', '.join(INFO_LOSSES)}."})
    info_share: float = field(
        default=OBJECTIVE["info_share"],
        metadata={"help": "Share of the images that the information loss is taken of."},
    )
    color_jitter: float = field(default=0.0, metadata={"help": "Strength of the colour jitter; 0 is off."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Train over another run's output folder."})

    def __post_init__(self) -> None:
        given = self.accelerator_config is not None
        super().__post_init__()
        if not given:
            copy_without_waiting(self)
        self.objective()
        if not self.outlier_weight:
            raise ValueError("`outlier_weight` must be greater than 0, or the adapter is not trained, got 0")
        if self.color_jitter < 0:
            raise ValueError(f"`color_jitter` must be at least 0, got {self.color_jitter!r}")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: the images would be removed")

    def objective(self) -> AdapterObjective:
        """The terms of the adapter."""
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
