"""One way to clean a teacher, as a line of a comparison: its name, its settings, and the teacher it makes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from singer_hf.baselines.recipes import recipe_settings
from singer_hf.baselines.refiners import REFINERS, check_refiner_settings, make_refiner
from singer_hf.baselines.registers import find_register_neurons, install_test_time_registers
from singer_hf.distillation.distiller import Refiner
from singer_hf.tuner import SingerConfig
from singer_hf.tuner.model import attach_adapter
from singer_hf.vit.structure import view_vit

KINDS = ("singer", "fitnet", "vitkd", "test_time_register", *REFINERS)

_OBJECTIVE = (
    "kd_weight",
    "outlier_weight",
    "info_weight",
    "outlier_quantile",
    "info_loss",
    "detach_refined",
    "adapter_warmup_steps",
    "teacher_layers",
    "student_layers",
    "mask_ratio",
    "generation_weight",
)
_ADAPTER = (
    "r",
    "layers_to_transform",
    "init_weights",
    "nullspace_source",
    "init_scale",
    "null_threshold",
)
# How far a step goes may suit a method; what is seen, and how often, is the study's to say.
_OPTIMIZER = ("learning_rate", "adam_beta2", "max_grad_norm")
_REFINER = ("quantile", "mad_factor", "scope")
_REGISTERS = ("num_neurons", "outlier_block")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_OWN = ("method", "recipe", "teacher_name_or_path")


@dataclass(frozen=True)
class Method:
    """A method of a comparison.

    Attributes:
        name: What it is called in tables.
        kind: One of ``KINDS``.
        objective: Fields of SingerTrainingArguments that belong to it.
        adapter: Fields of SingerConfig.
        refiner: Settings of a clean-up without training, see :mod:`singer_hf.baselines.refiners`.
        teacher_name_or_path: A teacher of its own (one with trained registers, for example); None for the shared one.
    """

    name: str
    kind: str
    objective: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    refiner: Mapping[str, Any] = field(default_factory=dict)
    teacher_name_or_path: str | None = None

    @classmethod
    def parse(cls, name: str, entry: Mapping[str, Any] | None) -> "Method":
        """A method from its lines in the YAML file: ``method`` (default: its name), ``recipe``, and settings.

        Raises:
            ValueError: If a setting is unknown, not one of this method, or out of its range.
        """
        entry = dict(entry or {})
        kind = entry.get("method", name)
        if kind not in KINDS:
            raise ValueError(f"`method` of {name!r} must be one of {', '.join(KINDS)}, got {kind!r}")
        settings = recipe_settings(entry["recipe"]) if "recipe" in entry else {}
        settings |= {key: value for key, value in entry.items() if key not in _OWN}
        parts = {
            "objective": _objective_names(kind),
            "adapter": _ADAPTER if kind == "singer" else (),
            "refiner": _REGISTERS if kind == "test_time_register" else _REFINER if kind in REFINERS else (),
        }
        known = [setting for names in parts.values() for setting in names]
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(f"{name!r} has settings that {kind} does not take: {unknown}; it takes {sorted(known)}")
        split = {part: {n: settings[n] for n in names if n in settings} for part, names in parts.items()}
        method = cls(name, kind, teacher_name_or_path=entry.get("teacher_name_or_path"), **split)
        check_numbers(repr(name), settings)
        try:
            method._check()
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
        return method

    def _check(self) -> None:
        """A wrong value is to be heard of before there is a teacher."""
        if self.kind == "singer":
            SingerConfig(**self.adapter)
        if self.kind in REFINERS:
            check_refiner_settings(**self.refiner)
        if self.refiner.get("num_neurons", 1) < 1:
            raise ValueError(f"`num_neurons` must be at least 1, got {self.refiner['num_neurons']!r}")

    def training_arguments(self) -> dict[str, Any]:
        """Fields of SingerTrainingArguments."""
        return dict(self.objective) | ({"distillation": "vitkd"} if self.kind == "vitkd" else {})

    def prepare(
        self, teacher: nn.Module, image_size: tuple[int, int], images: Iterable[Tensor], seed: int
    ) -> tuple[nn.Module, Refiner | None]:
        """The teacher to distil from, changed in place, and the clean-up of its features if it is not in the teacher.

        Args:
            teacher: The plain teacher.
            image_size: (height, width) in pixels of the images that it will see.
            images: Batches (B, 3, H, W) normalised for the teacher, to calibrate on and to find registers in.
            seed: Seed of an adapter's random directions.

        Raises:
            ValueError: If a setting does not fit the teacher.
        """
        if self.kind == "singer":
            config = SingerConfig(**self.adapter, init_seed=seed)
            if config.nullspace_source == "jacobian":
                config.calibration_images = list(images)
            return attach_adapter(teacher, config), None
        if self.kind == "test_time_register":
            view = view_vit(teacher)
            settings = {"outlier_block": view.num_blocks - 1, "num_neurons": 1, **self.refiner}
            install_test_time_registers(teacher, find_register_neurons(teacher, images, **settings))
        if self.kind in REFINERS:
            return teacher, make_refiner(self.kind, view_vit(teacher), image_size, **self.refiner)
        return teacher, None


def check_numbers(owner: str, settings: Mapping[str, Any]) -> None:
    """Refuses numbers that YAML reads as text, as it does with 1e-3.

    Raises:
        ValueError: If there is one.
    """
    for name, value in settings.items():
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            raise ValueError(f"{owner}: `{name}` is the text {value!r} to YAML; write it with a point, as in 1.0e-3")


def _objective_names(kind: str) -> tuple[str, ...]:
    if kind == "singer":
        bare_only = ("teacher_layers", "mask_ratio", "generation_weight")
        return (*(name for name in _OBJECTIVE if name not in bare_only), *_OPTIMIZER)
    vitkd = ("mask_ratio", "generation_weight") if kind == "vitkd" else ()
    return ("kd_weight", "teacher_layers", "student_layers", *vitkd, *_OPTIMIZER)
