"""Plain feature distillation over several blocks (FitNet)."""

from dataclasses import dataclass

from singer_hf.baselines.method import Method
from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.feature_distiller import FeatureDistiller


@dataclass(frozen=True)
class FitNet(Method):
    """Distils the teacher's raw features (Romero et al., arXiv 1412.6550, over several blocks)."""

    name = "fitnet"
    title = "FitNet"
    card = CardMethod(
        "fitnet",
        "by matching features of several blocks (FitNet): the student learned the teacher's raw features, high-norm "
        "tokens included.",
        "FitNet",
    )

    def describe(self, distiller: FeatureDistiller) -> str:
        """The method in a few words."""
        return "multi-layer feature distillation (FitNet), no refinement"
