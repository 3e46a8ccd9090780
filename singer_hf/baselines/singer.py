"""SiNGER as a method: the teacher gets an adapter, which is trained along with the student."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from singer_hf.baselines.method import Method
from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.distiller import SingerDistiller
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.tuner.config import SingerConfig
from singer_hf.tuner.model import adapter_settings, attach_adapter
from singer_hf.tuner.nullspace import NULL_TOLERANCE, Spectrum
from singer_hf.tuner.nullspace_sources import NULLSPACE_SOURCES, source_gram

_ADAPTER_SETTINGS = (
    "r",
    "layers_to_transform",
    "init_weights",
    "nullspace_source",
    "init_scale",
    "null_threshold",
    "gate",
)
_ADAPTER_OBJECTIVE = (
    *("outlier_weight", "info_weight", "outlier_quantile", "outlier_loss", "info_loss", "info_share"),
    "detach_refined",
)


@dataclass(frozen=True)
class Singer(Method):
    """Distils features that a trained low-rank adapter refines (SiNGER, arXiv 2509.20986).

    Args:
        adapter: Fields of :class:`singer_hf.SingerConfig`; its defaults hold for the others.

    Raises:
        ValueError: If a field of the adapter is out of its range.
    """

    name = "singer"
    title = "SiNGER"
    objective_fields = (*Method.objective_fields, *_ADAPTER_OBJECTIVE)
    # The adapter determines the teacher's blocks.
    training_fields = (
        "kd_weight",
        "kd_loss",
        "target_norm",
        "student_layers",
        *_ADAPTER_OBJECTIVE,
        "adapter_warmup_steps",
    )
    card = CardMethod(
        "singer",
        "with SiNGER ([paper](https://arxiv.org/abs/2509.20986)): a low-rank adapter lowered the norm of the "
        "teacher's outlier patch tokens and preserved the output of the next block, and the student learned the "
        "refined features.",
        "SiNGER",
    )

    adapter: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        SingerConfig(**self.adapter)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Singer":
        """Makes the method from fields of SingerConfig."""
        return cls(dict(settings))

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Fields of SingerConfig that a comparison may set."""
        return _ADAPTER_SETTINGS

    @property
    def needs_images(self) -> bool:
        """Whether the null space is computed from calibration images."""
        return self.adapter.get("nullspace_source") == "jacobian"

    def prepare(self, teacher: nn.Module, images: Iterable[Tensor] = (), seed: int = 0) -> nn.Module:
        """Returns the teacher with a new adapter.

        Args:
            teacher: The plain teacher.
            images: Calibration images, batches (B, 3, H, W) normalised for the teacher, for the source "jacobian".
            seed: Seed of random directions.

        Raises:
            ValueError: If the teacher has SiNGER adapters already or a setting does not fit it.
        """
        config = SingerConfig(**self.adapter, init_seed=seed)
        if self.needs_images:
            config.calibration_images = list(images)
        return attach_adapter(teacher, config)

    def make_distiller(self, student: nn.Module, teacher: nn.Module, args: Any, **inputs: Any) -> SingerDistiller:
        """Returns a :class:`SingerDistiller`; see :meth:`Method.make_distiller`."""
        return SingerDistiller(student, teacher, **self.objective(args), **inputs)

    def card_settings(self, distiller: FeatureDistiller) -> dict[str, Any]:
        """Settings of the adapter, for the model card."""
        name = distiller.teacher.active_adapter
        config = {**vars(distiller.teacher.peft_config[name]), **adapter_settings(distiller.teacher, name)}
        return {f"adapter {field}": config[field] for field in _ADAPTER_SETTINGS if field != "null_threshold"}

    def describe(self, distiller: FeatureDistiller) -> str:
        """The method in a few words."""
        return "SiNGER"

    def details(self, distiller: FeatureDistiller) -> list[str]:
        """Rank and effective null dimension of every adapter, for the sources that need no images."""
        return [_rank_line(distiller, block) for block in distiller.singer_layers]


def _rank_line(distiller: FeatureDistiller, block: int) -> str:
    rank = next(iter(distiller.singer_layers[block].singer_down.values())).out_features
    dimensions = [
        f"{source} {Spectrum.of_gram(source_gram(distiller.teacher_view, block, source)).effective_null_dimension()}"
        for source in NULLSPACE_SOURCES
        if source != "jacobian"
    ]
    return (
        f"adapter after block {block}: r {rank}, effective null dimension (singular values up to {NULL_TOLERANCE} "
        f"of the largest) by null-space source: {', '.join(dimensions)}"
    )
