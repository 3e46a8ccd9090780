"""SiNGER for Hugging Face: measure, refine and distil the features of vision transformers."""

from singer_hf.baselines.recipes import recipe_settings
from singer_hf.distillation.distiller import SingerDistiller
from singer_hf.extraction import extract_features
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.training.trainer import SingerDistillationTrainer
from singer_hf.tuner import SingerConfig, SingerLayer, SingerModel
from singer_hf.version import __version__

__all__ = [
    "SingerConfig",
    "SingerDistillationTrainer",
    "SingerDistiller",
    "SingerLayer",
    "SingerModel",
    "SingerTrainingArguments",
    "__version__",
    "extract_features",
    "recipe_settings",
]
