"""Settings of a fit, its candidates and its result."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FitSettings:
    """Settings of the training of heads: SGD with a cosine schedule without warm-up.

    Attributes:
        epochs: Passes over the rows to fit on, at least 1.
        batch_size: Rows per step.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        final_rate: Learning rate at the end of the schedule.
        validation_share: Share of the training rows on which the head is chosen; unused where there is no choice.
        patience: Stop after this many epochs in which no head got better; None trains all epochs.
        seed: Seed of the order of the rows and of the validation part.

    Raises:
        ValueError: If a value is out of range.
    """

    epochs: int = 10
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    final_rate: float = 0.0
    validation_share: float = 0.1
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)!r}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"`patience` must be at least 1 epoch or None, got {self.patience!r}")


@dataclass(frozen=True)
class Candidate:
    """A head and the peak learning rate it is trained with."""

    head: nn.Module
    learning_rate: float


@dataclass(frozen=True)
class FitResult:
    """Result of a fit: the chosen head.

    Attributes:
        name: Name of the chosen candidate.
        head: The trained head, in evaluation mode.
        scores: Name of each candidate -> its metric on the validation part, NaN where it diverged; empty where there
            was no choice.
        epochs: Number of trained epochs.
    """

    name: str
    head: nn.Module
    scores: dict[str, float]
    epochs: int


def sweep(
    make_head: Callable[[], nn.Module], learning_rates: Iterable[float], prefix: str = ""
) -> dict[str, Candidate]:
    """Makes one candidate per learning rate, named ``"<prefix>lr=<rate>"``.

    Args:
        make_head: Makes a head; always with the same initial weights.
        learning_rates: Peak learning rates.
        prefix: Start of the names.
    """
    return {f"{prefix}lr={rate:g}": Candidate(make_head(), rate) for rate in learning_rates}
