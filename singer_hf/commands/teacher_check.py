"""A short audit of the teacher before a distillation, which chooses the method where none is given."""

from collections.abc import Sequence

from torch import Tensor, nn

from singer_hf.baselines.fitnet import FitNet
from singer_hf.baselines.singer import Singer
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.report.verdict import judge


def choose_method(teacher: nn.Module, images: Sequence[Tensor], name: str) -> tuple[str, str]:
    """Chooses SiNGER for a teacher with artifacts and plain feature distillation for one without.

    Args:
        teacher: The teacher without adapters.
        images: Batches (B, 3, H, W) of a few hundred images, normalised for the teacher.
        name: Name of the teacher in the report.

    Returns:
        Name of the method, and what was seen and chosen, for the screen.

    Raises:
        ValueError: If there are no images.
    """
    number = sum(len(batch) for batch in images)
    verdict = judge(audit(teacher, images, name=name, progress=False))
    chosen, reason = Singer.name, "its outliers are refined (SiNGER)"
    if verdict.level == "clean":
        chosen, reason = (
            FitNet.name,
            "there is nothing to refine, it is distilled as it is, without an adapter (FitNet)",
        )
    lines = [f"audit of the teacher on {number} training images: {verdict.headline}", *verdict.sentences[:2]]
    return chosen, "\n  ".join([*lines, f"chosen: {reason}; `--method` overrides this"])
