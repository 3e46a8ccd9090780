"""What a method of distillation is: its settings, its preparation of the teacher, its distiller and its texts."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.summary import distillation_summary


@dataclass(frozen=True)
class Method:
    """Base class of all methods, which are listed in :data:`singer_hf.baselines.method_table.METHODS`.

    Its dataclass fields are its settings; ``__post_init__`` checks their ranges.

    Attributes:
        name: Name of the method in commands and YAML files.
        title: Name of the method in figures.
        objective_fields: Fields of SingerTrainingArguments that :meth:`make_distiller` passes on to the distiller.
        training_fields: All fields of SingerTrainingArguments that belong to the method.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    objective_fields: ClassVar[tuple[str, ...]] = (
        *("kd_weight", "kd_loss", "target_norm", "teacher_layers", "student_layers"),
    )
    training_fields: ClassVar[tuple[str, ...]] = objective_fields

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Method":
        """Makes the method from its settings by name, as in a YAML file.

        Raises:
            ValueError: If a value is out of its range.
        """
        return cls(**settings)

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Names of the settings that :meth:`from_settings` takes."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @property
    def needs_images(self) -> bool:
        """Whether :meth:`prepare` needs images."""
        return False

    @property
    def used_fields(self) -> tuple[str, ...]:
        """Those of ``training_fields`` that have a meaning with these settings."""
        return self.training_fields

    @property
    def card(self) -> CardMethod:
        """The method in the model card of its student."""
        raise NotImplementedError

    def prepare(self, teacher: nn.Module, images: Iterable[Tensor] = (), seed: int = 0) -> nn.Module:
        """Prepares the teacher for the method, in place, and returns it.

        Args:
            teacher: The plain teacher.
            images: Batches (B, 3, H, W) normalised for the teacher, for methods that need images.
            seed: Seed of random directions.
        """
        return teacher

    def make_distiller(self, student: nn.Module, teacher: nn.Module, args: Any, **inputs: Any) -> FeatureDistiller:
        """Returns the module that is trained.

        Args:
            student: The student.
            teacher: The prepared teacher.
            args: The training arguments with the fields ``objective_fields``.
            **inputs: ``image_size``, ``student_normalization`` and ``teacher_normalization`` of the distiller.
        """
        return FeatureDistiller(student, teacher, **self.objective(args), **inputs)

    def objective(self, args: Any) -> dict[str, Any]:
        """The settings of the objective from the training arguments."""
        return {name: getattr(args, name) for name in self.objective_fields}

    def run_settings(self, distiller: FeatureDistiller) -> dict[str, Any]:
        """Settings that a resumed run must share with its checkpoint, by name."""
        return dataclasses.asdict(self)

    def describe(self, distiller: FeatureDistiller) -> str:
        """The method in a few words, for the summary of a run."""
        raise NotImplementedError

    def details(self, distiller: FeatureDistiller) -> list[str]:
        """Further lines of the summary of a run."""
        return []

    def summarize(self, distiller: FeatureDistiller) -> str:
        """The summary of a run: method, models, paired blocks, trained and frozen parameters."""
        return distillation_summary(distiller, self.describe(distiller), self.details(distiller))

    def card_settings(self, distiller: FeatureDistiller) -> dict[str, Any]:
        """Settings that differ from their defaults, for the model card."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) not in (None, field.default)
        }
