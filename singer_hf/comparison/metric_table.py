"""The figures of a comparison: what they are called, which direction is good, and how they are written."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure of a method.

    Attributes:
        name: Key in a cell's ``metrics``.
        title: What it is, in words.
        higher_is_better: Which direction is good; None where neither is good in itself.
        percent: Whether it is a share in [0, 1] that is written in per cent.
        digits: Digits behind the point, as it is written.
    """

    name: str
    title: str
    higher_is_better: bool | None
    percent: bool
    digits: int

    @property
    def arrow(self) -> str:
        """↑, ↓, or nothing where neither direction is good."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    @property
    def unit(self) -> str:
        """What a difference is counted in: " points" for shares, otherwise nothing."""
        return " points" if self.percent else ""

    @property
    def scale(self) -> float:
        """Factor from the stored to the written figure."""
        return 100.0 if self.percent else 1.0

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """The figure as it is written, "-" for None."""
        if value is None:
            return "-"
        sign = "+" if signed else ""
        return f"{self.scale * value:{sign}z.{self.digits}f}"

    def gain(self, difference: float) -> float:
        """A difference with its sign turned so that better is positive; 0 where neither direction is good."""
        return 0.0 if self.higher_is_better is None else difference if self.higher_is_better else -difference


METRICS = (
    Metric("probe_cls", "linear probe, class token", True, True, 1),
    Metric("probe_mean", "linear probe, mean patch", True, True, 1),
    Metric("knn", "kNN", True, True, 1),
    Metric("mean_iou", "mIoU", True, True, 1),
    Metric("depth_rmse", "depth RMSE in metres", False, False, 3),
    Metric("outlier_ratio", "p99/median patch norm", False, False, 2),
    Metric("outlier_share", "outliers among the patches", False, True, 2),
    Metric("gram_teacher", "Gram distance to the teacher", None, False, 3),
    Metric("gram_clean", "Gram distance to the unplanted teacher", False, False, 3),
    Metric("cka_teacher", "CKA with the teacher", None, False, 3),
    Metric("cka_clean", "CKA with the unplanted teacher", True, False, 3),
    Metric("inheritance_iou", "IoU of the student's and the teacher's outliers", False, True, 1),
    Metric("inherited", "teacher's outliers that are the student's too", False, True, 1),
    Metric("e_prob", "share of Φ_up in the most-read directions", False, False, 3),
    Metric("e_safe", "share of Φ_up in the least-read directions", True, False, 3),
    Metric("leakage", "change of what the next block writes", False, False, 3),
    Metric("refined_outlier_ratio", "p99/median patch norm of the refined teacher", False, False, 2),
)
# What a student is for; all other figures say how clean its features, or those of the refined teacher, are.
QUALITY = ("probe_cls", "probe_mean", "knn", "mean_iou", "depth_rmse")
_KNOWN = {metric.name: metric for metric in METRICS}


def get_metric(name: str) -> Metric:
    """The metric called ``name``; one that is not in the table goes by its name and has no good direction."""
    return _KNOWN.get(name) or Metric(name, name, None, False, 3)


def in_order(names: Iterable[str]) -> list[str]:
    """``names`` without repetitions: those of the table in its order, then the others as they came."""
    found = list(dict.fromkeys(names))
    return [name for name in _KNOWN if name in found] + [name for name in found if name not in _KNOWN]
