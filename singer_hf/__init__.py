"""SiNGER for Hugging Face: see, clean and distil the features of vision transformers."""

from singer_hf.distiller import SingerDistiller
from singer_hf.trainer import SingerDistillationTrainer
from singer_hf.training_args import SingerTrainingArguments
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
]
