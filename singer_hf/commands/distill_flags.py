"""Flags of `distill` beside the training arguments and the adapter's configuration."""

import json
from dataclasses import dataclass, field, fields

from peft import PeftConfig

from singer_hf import SingerConfig
from singer_hf.baselines.cleaned import Cleaned
from singer_hf.baselines.fitnet import FitNet
from singer_hf.baselines.method import Method
from singer_hf.baselines.method_table import METHODS, make_method
from singer_hf.baselines.recipes import DEFAULT_RECIPE, RECIPES
from singer_hf.baselines.singer import Singer
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.losses import check_choice
from singer_hf.vit.loading import ATTENTIONS, DTYPES

# Fields of the configuration that a command line cannot set, or should not: PEFT's own, and images.
NO_FLAGS = (*(item.name for item in fields(PeftConfig)), "calibration_images")
# The flags that `--help` shows.
GROUPS = {
    "Teacher, student and images": (
        *("teacher_name_or_path", "student_name_or_path", "student_config", "dataset_name", "dataset_config"),
        *("dataset_revision", "train_split", "eval_split", "image_column", "max_train_samples", "max_eval_samples"),
        *("streaming", "shuffle_buffer", "image_processor", "color_jitter", "teacher_dtype"),
        "teacher_attn_implementation",
    ),
    "Method": (
        *("method", "adapter_name_or_path", "train_adapter", "recipe", "method_settings", "num_audit_images"),
        "num_calibration_images",
    ),
    "Objective": (
        *("kd_weight", "kd_loss", "target_norm", "outlier_weight", "info_weight", "outlier_quantile", "outlier_loss"),
        *("info_loss", "info_share", "detach_refined", "adapter_warmup_steps", "teacher_layers", "student_layers"),
    ),
    "Adapter": (
        *("r", "layers_to_transform", "gate", "init_weights", "nullspace_source", "init_scale", "null_threshold"),
        *("num_prefix_tokens", "exclude_modules", "init_seed"),
    ),
    "Training": (
        *("output_dir", "overwrite_output_dir", "resume", "dry_run", "num_train_epochs", "max_steps"),
        *("per_device_train_batch_size", "learning_rate", "warmup_steps", "weight_decay", "lr_scheduler_type"),
        *("lr_scheduler_kwargs", "max_grad_norm", "ema_decay", "bf16", "tf32", "compile_teacher"),
        *("cache_teacher_features", "num_cached_crops"),
        *("dataloader_num_workers", "dataloader_persistent_workers", "seed"),
    ),
    "Logs, evaluation and upload": (
        *("logging_steps", "num_artifact_images", "save_steps", "save_total_limit", "eval_steps", "evaluators"),
        *("push_to_hub", "hub_model_id", "license"),
    ),
}


@dataclass
class ScriptArguments:
    """Flags of the command beside those of SingerTrainingArguments and SingerConfig.

    Raises:
        ValueError: If flags contradict each other or the method's settings are out of range.
    """

    teacher_name_or_path: str = field(metadata={"help": "Teacher: Hub id (transformers or timm/) or local folder."})
    dataset_name: str = field(metadata={"help": "Images: Hub id, imagefolder, or folder of parquet or arrow files."})
    student_name_or_path: str | None = field(default=None, metadata={"help": "Student with weights to start from."})
    student_config: list[str] | None = field(
        default=None,
        metadata={"help": "Students with random weights: names, JSON files, folders or Hub ids."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of the dataset on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; none by default."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column with the images. Default: the only image column."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on a seeded subset of this size."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on a seeded subset of this size."})
    evaluators: list[str] = field(
        default_factory=list,
        metadata={"help": "knn, linear_probe or both, at every evaluation; need labels in both splits."},
    )
    streaming: bool = field(default=False, metadata={"help": "Stream the dataset; needs --max_steps."})
    shuffle_buffer: int = field(default=1000, metadata={"help": "Images to shuffle within when streaming."})
    image_processor: str | None = field(
        default=None,
        metadata={"help": "Image processor of the student. Default: its own, else the teacher's normalisation."},
    )
    adapter_name_or_path: str | None = field(
        default=None, metadata={"help": "Adapter of a cleaned teacher, active in its pass; no audit is made."}
    )
    train_adapter: bool = field(default=False, metadata={"help": "Train that adapter on; it is frozen otherwise."})
    teacher_dtype: str = field(
        default="auto", metadata={"help": f"Teacher's weights: {', '.join(DTYPES)} (as saved)."}
    )
    teacher_attn_implementation: str | None = field(
        default=None, metadata={"help": f"Teacher's attention: {', '.join(ATTENTIONS)}."}
    )
    method: str | None = field(
        default=None,
        metadata={
            "help": f"One of {', '.join(METHODS)}. Default: singer if an audit of the teacher finds artifacts or a "
            "flag of SiNGER is given, else fitnet."
        },
    )
    method_settings: str = field(
        default="{}",
        metadata={"help": 'Settings of a method other than SiNGER as JSON, for example \'{"scope": "batch"}\'.'},
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": f"Settings of SiNGER: {', '.join(RECIPES)}. Default: {DEFAULT_RECIPE}; flags win."},
    )
    num_calibration_images: int = field(
        default=32, metadata={"help": "Training images for `--nullspace_source jacobian` and test_time_register."}
    )
    num_audit_images: int = field(
        default=256, metadata={"help": "Training images for the audit that chooses the method."}
    )
    resume: bool = field(default=False, metadata={"help": "Resume from the last complete checkpoint in output_dir."})

    def __post_init__(self) -> None:
        check_choice("--teacher_dtype", self.teacher_dtype, DTYPES)
        if self.teacher_attn_implementation is not None:
            check_choice("--teacher_attn_implementation", self.teacher_attn_implementation, ATTENTIONS)
        if (self.student_name_or_path is None) == (self.student_config is None):
            raise ValueError("give exactly one of `--student_name_or_path` and `--student_config`")
        self._check_adapter()
        if self.method in (None, Singer.name, Cleaned.name) and self._given():
            raise ValueError(
                f"`--method_settings` must be left out with `--method {self.method or Singer.name}`, whose settings "
                f"are flags of their own, got {self.method_settings!r}"
            )
        make_method(self.method or Singer.name, self.settings())
        if self.num_audit_images < 1:
            raise ValueError(f"`--num_audit_images` must be at least 1, got {self.num_audit_images!r}")
        if self.recipe is not None and self.method not in (None, Singer.name):
            raise ValueError(f"`--recipe` has settings of SiNGER; leave it out with `--method {self.method}`")
        if self.evaluators and (self.eval_split is None or self.streaming):
            raise ValueError("`--evaluators` need `--eval_split`, and labelled images that are not streamed")

    def _check_adapter(self) -> None:
        """Chooses the method of a given adapter."""
        if self.adapter_name_or_path is not None and self.method not in (None, Cleaned.name):
            raise ValueError(
                f"`--adapter_name_or_path` must be left out with `--method {self.method}`, which takes no trained "
                f"adapter, got {self.adapter_name_or_path!r}"
            )
        if self.adapter_name_or_path is None and (self.train_adapter or self.method == Cleaned.name):
            flag = "--train_adapter" if self.train_adapter else f"--method {Cleaned.name}"
            raise ValueError(f"`{flag}` needs `--adapter_name_or_path`, the adapter of a cleaned teacher")
        self.method = self.method if self.adapter_name_or_path is None else Cleaned.name

    def settings(self) -> dict:
        """Returns the settings of the method by name.

        Raises:
            ValueError: If `method_settings` is not a JSON object.
        """
        if self.method == Cleaned.name:
            return {"adapter_name_or_path": self.adapter_name_or_path, "train_adapter": self.train_adapter}
        return self._given()

    def _given(self) -> dict:
        try:
            settings = json.loads(self.method_settings)
        except json.JSONDecodeError as error:
            raise ValueError(f"`--method_settings` must be JSON, got {self.method_settings!r}: {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"`--method_settings` must be settings by name, got {self.method_settings!r}")
        return settings


def asks_for_adapter(script: ScriptArguments, given: set[str]) -> bool:
    """Whether flags ask for SiNGER without naming it: a recipe, or a setting of its adapter or of its terms.

    Args:
        script: The flags.
        given: Names of the fields that were given on the command line or in the YAML file.
    """
    own = {item.name for item in fields(SingerConfig)} | set(Singer.training_fields) - set(FitNet.training_fields)
    return script.recipe is not None or bool(given & own)


def check_flags(method: Method, given: set[str]) -> None:
    """Checks that every flag has a meaning for the method.

    Args:
        method: The method.
        given: Names of the fields that were given on the command line or in the YAML file.

    Raises:
        ValueError: If a flag belongs to another method.
    """
    others = {name for kind in METHODS.values() for name in kind.training_fields} - set(method.used_fields)
    if not isinstance(method, Singer):
        others |= {item.name for item in fields(SingerConfig)}
    if wrong := sorted(given & others):
        listed = ", ".join(f"`--{name}`" for name in wrong)
        raise ValueError(f"{_flag_of(method)} does not use {listed}; leave them out")


def _flag_of(method: Method) -> str:
    """The flag that asks for a method, for messages."""
    if not isinstance(method, Cleaned):
        return f"`--method {method.name}`"
    return "`--adapter_name_or_path`" + ("" if method.train_adapter else " without `--train_adapter`")


def check_prefix_tokens(distiller: FeatureDistiller, num_prefix_tokens: int | None) -> None:
    """Checks that patches are left behind the prefix tokens.

    Args:
        distiller: The distiller, for the teacher and the size of its images.
        num_prefix_tokens: The flag.

    Raises:
        ValueError: If the prefix takes all tokens of an image, so that nothing would be refined.
    """
    view, grid = distiller.teacher_view, distiller.teacher_input.grid
    if num_prefix_tokens is not None and num_prefix_tokens >= view.num_prefix_tokens + grid[0] * grid[1]:
        raise ValueError(
            f"`--num_prefix_tokens` must be less than the {view.num_prefix_tokens + grid[0] * grid[1]} tokens of an "
            f"image, got {num_prefix_tokens}; leave it out for the {view.num_prefix_tokens} of the teacher"
        )
