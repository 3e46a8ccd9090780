"""Arguments of the training of an adapter alone."""

from dataclasses import dataclass, field

from singer_hf.training.adapter.base_arguments import AdapterArguments


@dataclass
class CleaningArguments(AdapterArguments):
    """`transformers.TrainingArguments` plus the objective of the adapter.

    Differences from the base class: ``output_dir`` is "outputs/cleaned"; 300 steps of 32 images, ``learning_rate``
    2e-3 with a cosine schedule, and those of
    :class:`singer_hf.training.adapter.base_arguments.AdapterArguments`, whose fields are the objective.

    Raises:
        ValueError: If a value is out of its range.
    """

    output_dir: str | None = field(default="outputs/cleaned", metadata={"help": "Folder of the adapter."})
    max_steps: int = field(default=300, metadata={"help": "Number of steps; -1 for `num_train_epochs`."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images per step and device."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.outlier_weight:
            raise ValueError("`outlier_weight` must be greater than 0, or the adapter is not trained, got 0")
