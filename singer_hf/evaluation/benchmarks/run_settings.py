"""Settings of a run on a benchmark, and their changes to the protocol."""

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from singer_hf.data.image_processors import ImageSpec
from singer_hf.evaluation.benchmarks.protocols import EvaluationProtocol
from singer_hf.evaluation.heads.fit_settings import FitSettings

# Fields of RunSettings that change the metrics.
_CHANGES = ("num_epochs", "batch_size", "learning_rates", "image_size", "resize_size", "augment", "depth_temperature")


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run on a benchmark; None takes the value of the protocol.

    Attributes:
        protocol: The protocol.
        work_dir: Folder for cached features, states of unfinished fits and heads that other benchmarks reuse.
        seed: Seed of subsets, order, crops and bootstrap.
        num_epochs: Passes over the training set.
        batch_size: Images per step.
        learning_rates: Peak learning rates that are compared.
        image_size: Height and width in pixels; None takes those of the model's image processor.
        resize_size: Length of the shorter side before the crop, or before the sliding window, in pixels.
        augment: Whether the heads are trained on new random crops in every epoch, which rules out cached features.
        depth_temperature: Temperature of the softmax that averages the bins of depth.
        cache_budget_gib: Largest size of one cache of features.
        num_workers: Number of processes that load images.
        num_pictures: Number of test images in the figures of masks and depth maps.
        resamples: Number of test sets drawn for the intervals.
        progress: Whether to show progress bars.
    """

    protocol: EvaluationProtocol
    work_dir: Path
    seed: int = 0
    num_epochs: int | None = None
    batch_size: int | None = None
    learning_rates: tuple[float, ...] | None = None
    image_size: int | None = None
    resize_size: int | None = None
    augment: bool = False
    depth_temperature: float | None = None
    cache_budget_gib: float = 16.0
    num_workers: int = 0
    num_pictures: int = 4
    resamples: int = 1000
    progress: bool = True

    def changes(self) -> dict[str, object]:
        """Fields that differ from the protocol, by name."""
        default = {item.name: item.default for item in fields(self) if item.name in _CHANGES}
        return {name: getattr(self, name) for name in _CHANGES if getattr(self, name) != default[name]}

    def fit_settings(self, dense: bool) -> FitSettings:
        """Settings of the training of dense or linear heads."""
        base = self.protocol.dense if dense else self.protocol.classification
        return replace(
            base,
            epochs=self.num_epochs or base.epochs,
            batch_size=self.batch_size or base.batch_size,
            seed=self.seed,
        )

    def rates(self, dense: bool) -> tuple[float, ...]:
        """Peak learning rates for the batch size in use; ``learning_rates`` are not scaled."""
        if self.learning_rates is not None:
            return self.learning_rates
        scale = 1.0
        if not dense and self.protocol.rates_batch_size is not None:
            scale = self.fit_settings(dense).batch_size / self.protocol.rates_batch_size
        return tuple(rate * scale for rate in self.protocol.learning_rates)

    def size(self, spec: ImageSpec) -> tuple[int, int]:
        """(height, width) of the model's input in pixels."""
        return spec.size if self.image_size is None else (self.image_size, self.image_size)

    def resize(self, size: tuple[int, int]) -> int:
        """Length of the shorter side before a centre crop to ``size`` in pixels, in the protocol's proportion."""
        return self.resize_size or round(max(size) * self.protocol.resize_size / self.protocol.image_size)

    def state_file(self, *parts: object) -> Path:
        """File for the state of the fit described by ``parts``."""
        return self.work_dir / "states" / f"{digest(self.protocol, self.changes(), self.seed, *parts)}.pt"


def digest(*parts: object) -> str:
    """Returns a short hash of the ``repr`` of all parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
