"""Test-time registers as a method: block and register neurons are found in calibration images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.norm_thresholds import SigmaRule
from singer_hf.baselines.cleanups.refiner_method import refined_features_card
from singer_hf.baselines.cleanups.register_search import find_outlier_block, find_register_neurons
from singer_hf.baselines.cleanups.registers import install_test_time_registers
from singer_hf.baselines.method import Method
from singer_hf.distillation.feature_distiller import FeatureDistiller


@dataclass(frozen=True)
class TestTimeRegister(Method):
    """Distils a teacher with a register token added at test time (Jiang et al., arXiv:2506.08010).

    The authors' code takes the block, a threshold on the norms and the number of neurons from a file for each model;
    here all of them are found by default.

    Args:
        num_neurons: MLP units whose activations move to the register, >= 1. None: as many as it takes, see
            :func:`singer_hf.baselines.cleanups.register_search.find_register_neurons`.
        outlier_block: Block after which the outliers are detected, negatives allowed. None: the one after which they
            appear, see :func:`singer_hf.baselines.cleanups.register_search.find_outlier_block`.
        sigma: An outlier's norm exceeds the mean norm of its image by this number of standard deviations, > 0. None:
            ``OutlierRule()``, which finds larger shares of outliers as well.

    Raises:
        ValueError: If a setting is out of its range.
    """

    __test__ = False  # the name is the paper's, not that of a test

    name = "test_time_register"
    title = "test-time register"
    needs_images = True
    card = refined_features_card(
        "a test-time register ([paper](https://arxiv.org/abs/2506.08010)), an additional token that takes their "
        "activations"
    )

    num_neurons: int | None = None
    outlier_block: int | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        if self.num_neurons is not None and self.num_neurons < 1:
            raise ValueError(f"`num_neurons` must be at least 1, got {self.num_neurons!r}")
        if self.sigma is not None:
            SigmaRule(self.sigma)

    def prepare(self, teacher: nn.Module, images: Iterable[Tensor] = (), seed: int = 0) -> nn.Module:
        """Returns the teacher with the register installed, which is its attribute ``test_time_registers``.

        Args:
            teacher: The plain teacher.
            images: Batches (B, 3, H, W) normalised for the teacher, in which the neurons are found.
            seed: Not used.

        Raises:
            ValueError: If no image has outliers or a setting does not fit the teacher.
        """
        images, rule = list(images), OutlierRule() if self.sigma is None else SigmaRule(self.sigma)
        block = find_outlier_block(teacher, images, rule) if self.outlier_block is None else self.outlier_block
        settings = {"num_neurons": self.num_neurons, "outlier_block": block, "rule": rule}
        neurons = find_register_neurons(teacher, images, **settings)
        teacher.test_time_registers = install_test_time_registers(teacher, neurons)
        return teacher

    def describe(self, distiller: FeatureDistiller) -> str:
        """The method in a few words."""
        return (
            f"multi-layer feature distillation, targets refined by a test-time register{_neurons_in_words(distiller)}"
        )

    def card_settings(self, distiller: FeatureDistiller) -> dict[str, Any]:
        """Settings that differ from their defaults and the neurons that were found, for the model card."""
        found = _neurons_in_words(distiller).removeprefix(" of ")
        return super().card_settings(distiller) | ({"register neurons": found} if found else {})


def _neurons_in_words(distiller: FeatureDistiller) -> str:
    registers = getattr(distiller.teacher, "test_time_registers", None)
    if registers is None:
        return ""
    numbers = {block: len(units) for block, units in registers.neurons.items()}
    return " of " + ", ".join(f"{number} neuron(s) in block {block}" for block, number in numbers.items())
