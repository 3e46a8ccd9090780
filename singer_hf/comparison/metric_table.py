"""The metrics of a comparison: names, titles, directions and number formats."""

from collections.abc import Iterable
from dataclasses import dataclass

from singer_hf.evaluation.metrics import greater_is_better


@dataclass(frozen=True)
class Metric:
    """A metric of a trained student or of its refined teacher.

    Attributes:
        name: Key in a cell's ``metrics``.
        title: Description in a few words.
        higher_is_better: Which direction is good; None where neither is good in itself.
        percent: Whether the value is a share in [0, 1] that is shown in per cent.
        digits: Decimal places.
    """

    name: str
    title: str
    higher_is_better: bool | None
    percent: bool
    digits: int

    @property
    def arrow(self) -> str:
        """↑, ↓, or an empty string where neither direction is good."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    @property
    def unit(self) -> str:
        """Unit of a difference: " points" for shares, otherwise empty."""
        return " points" if self.percent else ""

    @property
    def scale(self) -> float:
        """Factor from the stored to the displayed value."""
        return 100.0 if self.percent else 1.0

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """Formats a value for display; "-" for None."""
        if value is None:
            return "-"
        sign = "+" if signed else ""
        return f"{self.scale * value:{sign}z.{self.digits}f}"

    def gain(self, difference: float) -> float:
        """A difference with the sign chosen so that better is positive; 0 where neither direction is good."""
        return 0.0 if self.higher_is_better is None else difference if self.higher_is_better else -difference


METRICS = (
    Metric("probe_cls", "linear probe, class token", greater_is_better("top1"), True, 1),
    Metric("probe_mean", "linear probe, mean patch", greater_is_better("top1"), True, 1),
    Metric("knn", "kNN", greater_is_better("knn_top1"), True, 1),
    Metric("mean_iou", "mIoU", greater_is_better("mean_iou"), True, 1),
    Metric("depth_rmse", "depth RMSE in metres", greater_is_better("rmse"), False, 3),
    Metric("outlier_ratio", "p99/median patch norm", False, False, 2),
    Metric("outlier_share", "outliers among the patches", False, True, 2),
    Metric("gram_teacher", "Gram distance to the teacher", None, False, 3),
    Metric("gram_clean", "Gram distance to the unplanted teacher", False, False, 3),
    Metric("cka_teacher", "CKA with the teacher", None, False, 3),
    Metric("cka_clean", "CKA with the unplanted teacher", True, False, 3),
    Metric("inheritance_iou", "IoU of the student's and the teacher's outliers", False, True, 1),
    Metric("inherited", "teacher's outliers that are also outliers of the student", False, True, 1),
    Metric("cosine_artifacts", "cosine to the unplanted teacher at artifact places", True, False, 3),
    Metric("cosine_elsewhere", "cosine to the unplanted teacher elsewhere", True, False, 3),
    # The following six have no direction: a clean model is near the unplanted teacher, which is special there too.
    Metric("artifact_alignment", "cosine of the tokens at artifact places with each other", None, False, 3),
    Metric("other_alignment", "cosine of the tokens at artifact places with the others", None, False, 3),
    Metric("auroc_norm", "AUROC of the artifact places by norm", None, False, 3),
    Metric("auroc_direction", "AUROC of the artifact places by direction", None, False, 3),
    Metric("auroc_frequency", "AUROC of the artifact places by frequency along the channels", None, False, 3),
    Metric("class_attention", "class token's attention to artifact places, relative to their number", None, False, 2),
    Metric("e_prob", "energy share of Φ_up, largest singular values", False, False, 3),
    Metric("e_safe", "energy share of Φ_up, smallest singular values", True, False, 3),
    Metric("leakage", "change of the next block's residual update", False, False, 3),
    Metric("refined_outlier_ratio", "p99/median patch norm of the refined teacher", False, False, 2),
)
# Metrics of downstream tasks; all others measure artifacts and similarity of the features.
QUALITY = ("probe_cls", "probe_mean", "knn", "mean_iou", "depth_rmse")
_KNOWN = {metric.name: metric for metric in METRICS}


def get_metric(name: str) -> Metric:
    """The metric ``name``; one that is not in the table is titled by its name and has no good direction."""
    return _KNOWN.get(name) or Metric(name, name, None, False, 3)


def in_order(names: Iterable[str]) -> list[str]:
    """``names`` without repetitions: those of the table in its order, then the others in the given order."""
    found = list(dict.fromkeys(names))
    return [name for name in _KNOWN if name in found] + [name for name in found if name not in _KNOWN]
