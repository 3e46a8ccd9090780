"""SiNGER for Hugging Face: measure, refine and distil the features of vision transformers.

The public names are imported when they are first used. Importing the package registers SiNGER with PEFT.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from singer_hf.peft_registration import register_with_peft
from singer_hf.version import __version__

if TYPE_CHECKING:
    from singer_hf.baselines.recipes import recipe_settings
    from singer_hf.cleaning.clean import clean
    from singer_hf.distillation.distiller import SingerDistiller
    from singer_hf.evaluation.evaluate import evaluate
    from singer_hf.extraction import extract_features
    from singer_hf.inspection.audit_models import audit
    from singer_hf.training.adapter.arguments import CleaningArguments
    from singer_hf.training.arguments import SingerTrainingArguments
    from singer_hf.training.trainer import SingerDistillationTrainer
    from singer_hf.tuner import SingerConfig, SingerLayer, SingerModel

__all__ = [
    "CleaningArguments",
    "SingerConfig",
    "SingerDistillationTrainer",
    "SingerDistiller",
    "SingerLayer",
    "SingerModel",
    "SingerTrainingArguments",
    "__version__",
    "audit",
    "clean",
    "evaluate",
    "extract_features",
    "recipe_settings",
]

_MODULES = {
    "CleaningArguments": "singer_hf.training.adapter.arguments",
    "SingerConfig": "singer_hf.tuner",
    "SingerDistillationTrainer": "singer_hf.training.trainer",
    "SingerDistiller": "singer_hf.distillation.distiller",
    "SingerLayer": "singer_hf.tuner",
    "SingerModel": "singer_hf.tuner",
    "SingerTrainingArguments": "singer_hf.training.arguments",
    "audit": "singer_hf.inspection.audit_models",
    "clean": "singer_hf.cleaning.clean",
    "evaluate": "singer_hf.evaluation.evaluate",
    "extract_features": "singer_hf.extraction",
    "recipe_settings": "singer_hf.baselines.recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_peft()
