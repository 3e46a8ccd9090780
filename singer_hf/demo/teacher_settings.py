"""Settings of `examples/train_teacher.py` and its training arguments."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from singer_hf.demo.mixing import check_alpha
from singer_hf.demo.planted_model import PLANTED_DIRECTIONS

ENDLESS_SCENES = "endless scenes"


@dataclass
class TeacherSettings:
    """Data, model, mixing, log of artifacts and planting of the teacher."""

    dataset_name: str = field(
        metadata={
            "help": f"Labelled images: a folder, a Hub id, or {ENDLESS_SCENES!r} (synthetic, drawn on the device)."
        }
    )
    teacher_config: str | None = field(
        default=None, metadata={"help": "Config of the ViT: name, JSON file or Hub id."}
    )
    trained_teacher: str | None = field(
        default=None, metadata={"help": "Plant tokens in this classifier instead of training one."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str = field(default="test", metadata={"help": "Split on which the accuracy is measured."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on a seeded subset of this size."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Measure on a seeded subset of this size."})
    min_crop: float = field(default=0.5, metadata={"help": "Smallest share of an image's area in a random crop."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Beta parameter of MixUp; 0: off, 0.8 is common."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "Beta parameter of CutMix; 0: off, 1.0 is common."})
    artifact_log_steps: int = field(
        default=0, metadata={"help": "Steps between two measurements of high-norm tokens on test images; 0: off."}
    )
    saved_scenes: int = field(
        default=0, metadata={"help": "Endless scenes: write so many, and the test scenes, to output_dir/scenes."}
    )
    planted_share: float = field(default=0.04, metadata={"help": "Share of patches with planted tokens; 0: none."})
    planted_ratio: float = field(
        default=16.0, metadata={"help": "Norm of the planted tokens divided by the median norm."}
    )
    planted_block: int | None = field(default=None, metadata={"help": "Block that writes them. Default: L / 3."})
    planted_direction: str = field(
        default="random", metadata={"help": f"Their direction: one of {', '.join(PLANTED_DIRECTIONS)}."}
    )
    planted_seed: int = field(default=0, metadata={"help": "Seed of the random direction."})
    resume: bool = field(default=False, metadata={"help": "Resume from the last checkpoint in output_dir."})

    def __post_init__(self) -> None:
        if (self.teacher_config is None) == (self.trained_teacher is None):
            raise ValueError("give exactly one of `--teacher_config` and `--trained_teacher`")
        if self.planted_direction not in PLANTED_DIRECTIONS:
            raise ValueError(
                f"`--planted_direction` must be one of {PLANTED_DIRECTIONS}, got {self.planted_direction!r}"
            )
        if not 0 <= self.planted_share < 0.5:
            raise ValueError(f"`--planted_share` must lie in [0, 0.5), got {self.planted_share!r}")
        check_alpha("--mixup_alpha", self.mixup_alpha)
        check_alpha("--cutmix_alpha", self.cutmix_alpha)
        for name in ("artifact_log_steps", "saved_scenes"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name}` must be 0 or more, got {getattr(self, name)!r}; 0 turns it off")
        if self.saved_scenes and not self.is_endless:
            raise ValueError(
                f"`--saved_scenes` must be 0 with stored images, got {self.saved_scenes!r}; it belongs to "
                f"`--dataset_name {ENDLESS_SCENES!r}`"
            )

    @property
    def is_endless(self) -> bool:
        """Whether the images are endless scenes."""
        return self.dataset_name == ENDLESS_SCENES


@dataclass
class TeacherArguments(TrainingArguments):
    """TrainingArguments with defaults for a ViT trained from scratch."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or a share of all steps below 1."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per step and device."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing of the cross-entropy."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Must be False."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Number of checkpoints to keep."})
