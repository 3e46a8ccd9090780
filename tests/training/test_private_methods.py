"""The private methods of `transformers.Trainer` and of PEFT on which the package depends: no others, and all exist.

A private method that is renamed would leave an override that nobody calls.
"""

import pytest
from peft.tuners.tuners_utils import BaseTuner
from transformers import Trainer
from versions import needs

from singer_hf import SingerDistillationTrainer, SingerModel
from singer_hf.training.adapter.trainer import AdapterTrainer

TRAINER = {
    # what is saved and loaded
    *("_save", "_save_checkpoint", "_save_rng_state", "_load_from_checkpoint", "_load_best_model"),
    # the course of a run: checks before logs and saves, uploads, where a stream goes on, 8-bit images
    *("_maybe_log_save_evaluate", "_push_from_checkpoint", "_init_training_state", "_prepare_inputs"),
}
TUNER = {
    # what PEFT asks every method to define
    *("_create_and_replace", "_prepare_adapter_config", "_check_target_module_exists"),
    # what a block, which has no weight and cannot be merged, does differently
    *("_replace_module", "_check_merge_allowed", "_cast_adapter_dtype"),
    # blocks by index in saved files
    *("_get_adapter_state_dict", "_remap_adapter_state_dict_for_load"),
}


def overridden(kind: type, base: type) -> set[str]:
    own = kind.__mro__[: kind.__mro__.index(base)]
    names = {name for part in own for name, value in vars(part).items() if callable(getattr(value, "__func__", value))}
    return {name for name in names if name.startswith("_") and not name.startswith("__") and hasattr(base, name)}


@needs("transformers", "5.3")
@needs("peft", "0.21")
@pytest.mark.parametrize(
    ("kind", "base", "expected"),
    [(SingerDistillationTrainer, Trainer, TRAINER), (SingerModel, BaseTuner, TUNER)],
)
def test_these_private_methods_are_overridden_and_no_others(kind, base, expected):
    assert overridden(kind, base) == expected


def test_a_trainer_of_adapters_overrides_no_others():
    assert overridden(AdapterTrainer, Trainer) <= TRAINER
