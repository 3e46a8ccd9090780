"""A short audit of the teacher before a distillation, which chooses the method where none is given."""

from collections.abc import Sequence

from torch import Tensor, nn

from singer_hf.baselines.fitnet import FitNet
from singer_hf.baselines.singer import Singer
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.report.verdict import has_artifacts, judge, percent

# Share of the patches from which a teacher that was cleaned first gave better students: at 0.16, not yet at 0.03
# (docs/results.md); nothing in between was measured.
MANY_ARTIFACTS = 0.1


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
    result = audit(teacher, images, name=name, progress=False)
    verdict, most = judge(result), max((b.outlier_share for b in result.blocks if has_artifacts(b)), default=0.0)
    chosen, reason = Singer.name, "its outliers are refined (SiNGER)"
    if verdict.level == "clean":
        chosen, reason = (
            FitNet.name,
            "there is nothing to refine, it is distilled as it is, without an adapter (FitNet)",
        )
    lines = [f"audit of the teacher on {number} training images: {verdict.headline}", *verdict.sentences[:2]]
    lines.append(f"chosen: {reason}; `--method` overrides this")
    if most >= MANY_ARTIFACTS:
        lines.append(
            f"{percent(most)} of the patches are many: a teacher that `singer-hf clean` cleaned before gave better "
            "students; distil it with `--adapter_name_or_path`"
        )
    return chosen, "\n  ".join(lines)
