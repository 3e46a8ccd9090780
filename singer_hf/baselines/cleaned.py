"""Distillation from a cleaned teacher as a method: a saved adapter refines the teacher inline."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from singer_hf.baselines.method import Method
from singer_hf.cards.privacy import without_paths
from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.adapter.inline_distiller import InlineDistiller
from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.tuner.loading import load_adapter

_ADAPTER_OBJECTIVE = tuple(item.name for item in dataclasses.fields(AdapterObjective))


@dataclass(frozen=True)
class Cleaned(Method):
    """Distils a teacher that an adapter cleaned before (:func:`singer_hf.cleaning.clean.clean`).

    Args:
        adapter_name_or_path: Folder or Hub id of the adapter. None: the teacher carries its adapters already.
        train_adapter: Whether the adapter is trained on, by its own two terms; otherwise it is frozen.

    Raises:
        ValueError: If a setting has a value of another kind.
    """

    name = "cleaned"
    title = "cleaned teacher"
    # Those of the adapter's terms have a meaning with `train_adapter` only, see `used_fields`.
    training_fields = (*Method.training_fields, *_ADAPTER_OBJECTIVE)

    adapter_name_or_path: str | None = None
    train_adapter: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.train_adapter, bool):
            raise ValueError(f"`train_adapter` must be true or false, got {self.train_adapter!r}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Cleaned":
        """Makes the method from its settings by name, as in a YAML file, where a teacher carries no adapter.

        Raises:
            ValueError: If no adapter is named, or a value is out of its range.
        """
        method = cls(**settings)
        if not method.adapter_name_or_path:
            raise ValueError(
                "`adapter_name_or_path` must name the adapter of the cleaned teacher, a folder or a Hub id, got "
                f"{method.adapter_name_or_path!r}"
            )
        return method

    @property
    def used_fields(self) -> tuple[str, ...]:
        """Without ``train_adapter`` the adapter has no objective."""
        return self.training_fields if self.train_adapter else Method.training_fields

    @property
    def card(self) -> CardMethod:
        """The method in the model card of its student."""
        trained = "went on being trained beside the student" if self.train_adapter else "was not trained any further"
        return CardMethod(
            "singer",
            "after it was cleaned with SiNGER ([paper](https://arxiv.org/abs/2509.20986)): a low-rank adapter refines "
            "the outlier patch tokens behind the block where they begin, later blocks read the refined tokens, and "
            f"the student learned the features of this refined teacher. The adapter {trained}.",
            "SiNGER, cleaned teacher",
        )

    def prepare(self, teacher: nn.Module, images: Iterable[Tensor] = (), seed: int = 0) -> nn.Module:
        """Returns the teacher with the adapter.

        Args:
            teacher: The plain teacher; without ``adapter_name_or_path`` a teacher that carries its adapters.
            images: Not used, batches (B, 3, H, W).
            seed: Not used.

        Raises:
            ValueError: If there is no adapter, there are two, or the adapter does not fit.
        """
        carried = sorted(find_singer_layers(teacher))
        if self.adapter_name_or_path is None:
            if not carried:
                raise ValueError(
                    "`adapter_name_or_path` must name the adapter of the teacher, which carries none, got None"
                )
            return teacher
        if carried:
            raise ValueError(
                "`adapter_name_or_path` must be left out for a teacher that carries SiNGER adapters already (behind "
                f"the blocks {carried}), got {self.adapter_name_or_path!r}"
            )
        return load_adapter(teacher, self.adapter_name_or_path, is_trainable=self.train_adapter)

    def make_distiller(self, student: nn.Module, teacher: nn.Module, args: Any, **inputs: Any) -> InlineDistiller:
        """Returns an :class:`InlineDistiller`; see :meth:`Method.make_distiller`."""
        objective = None
        if self.train_adapter:
            objective = AdapterObjective(**{name: getattr(args, name) for name in _ADAPTER_OBJECTIVE})
        return InlineDistiller(student, teacher, objective, **self.objective(args), **inputs)

    def run_settings(self, distiller: InlineDistiller) -> dict[str, Any]:
        """Settings that a resumed run must share: the adapter itself, wherever it was loaded from."""
        return {"train_adapter": self.train_adapter, "initial_adapter": distiller.initial_adapter}

    def describe(self, distiller: InlineDistiller) -> str:
        """The method in a few words."""
        return f"multi-layer feature distillation of a cleaned teacher, adapter {_fate(distiller)}"

    def details(self, distiller: InlineDistiller) -> list[str]:
        """The blocks with adapters."""
        blocks = ", ".join(map(str, distiller.singer_layers))
        return [f"adapter {self._adapter_name(distiller)} behind block(s) {blocks}, read by all later blocks"]

    def card_settings(self, distiller: InlineDistiller) -> dict[str, Any]:
        """The adapter, for the model card."""
        return {
            "adapter": self._adapter_name(distiller),
            "adapter digest": distiller.initial_adapter,
            "adapter blocks": list(distiller.singer_layers),
            "train_adapter": self.train_adapter,
        }

    def _adapter_name(self, distiller: InlineDistiller) -> str:
        if self.adapter_name_or_path is not None:
            return without_paths(self.adapter_name_or_path)
        return str(distiller.teacher.active_adapter)


def _fate(distiller: InlineDistiller) -> str:
    return "frozen" if distiller.objective is None else "trained along"
