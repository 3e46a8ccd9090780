"""The outcome of a cleaning: both audits as a table, a picture, and a page."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from singer_hf.cards.markdown import markdown_table
from singer_hf.cleaning.images import CleaningInputs
from singer_hf.cleaning.plan import CleaningPlan
from singer_hf.data.image_processors import image_spec
from singer_hf.inspection.audit_report import AuditReport
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.snapshots import Snapshot, take_snapshot
from singer_hf.inspection.report.before_after import before_after_maps
from singer_hf.inspection.report.verdict import has_artifacts, percent

logger = logging.getLogger(__name__)

PICTURE = "before_after.png"
_SHOWN = 4


@dataclass
class CleaningReport:
    """Both audits of a cleaning.

    Attributes:
        inputs: Teacher and images.
        plan: The plan, with the audit before.
        shown: Images of the figures, (K, 3, H, W), those with the longest tokens first.
        before_snapshot: Features of these images before.
        after: The audit of the cleaned teacher as it runs; None until it is trained.
        after_snapshot: Features of the images after.
    """

    inputs: CleaningInputs
    plan: CleaningPlan
    shown: Tensor
    before_snapshot: Snapshot
    after: AuditResult | None = None
    after_snapshot: Snapshot | None = None

    @classmethod
    def begin(cls, inputs: CleaningInputs, plan: CleaningPlan) -> "CleaningReport":
        """Looks at the teacher before anything is changed."""
        worst = [ranked["image"] for ranked in plan.audit.worst_images[:_SHOWN]]
        shown = torch.cat(inputs.batches)[worst]
        return cls(inputs, plan, shown, _snapshot(inputs, inputs.teacher, shown, plan.audit.name))

    def finish(self, model: nn.Module) -> None:
        """Audits the cleaned teacher as it runs."""
        name = f"{self.inputs.name}, cleaned"
        self.after = audit(model, self.inputs.batches, name=name, inline=True)
        self.after_snapshot = _snapshot(self.inputs, model, self.shown, name)

    @property
    def before(self) -> AuditResult:
        """The audit of the teacher as it is."""
        return self.plan.audit

    @property
    def left(self) -> list[int]:
        """Blocks of the cleaned teacher, from the first adapter on, that still have artifacts."""
        return [block.block for block in self.after.blocks[self.plan.blocks[0] :] if has_artifacts(block)]

    def rows(self) -> list[list[str]]:
        """Cells of a table: block, share of outliers before and after, p99 over median before and after."""
        pairs = zip(self.before.blocks, self.after.blocks, strict=True)
        return [
            [
                str(old.block) + (" (adapter)" if old.block in self.plan.blocks else ""),
                *(percent(block.outlier_share) for block in (old, new)),
                *(f"{block.p99_over_median:.2f}" for block in (old, new)),
            ]
            for old, new in pairs
        ]

    def lines(self) -> list[str]:
        """The outcome in a few lines for the screen."""
        if self.after is None:
            return ["Dry run: the adapter was not trained to the end, and nothing was saved."]
        old, new = self.before.blocks[-1], self.after.blocks[-1]
        lines = [
            f"Cleaned: after the last block, outliers {percent(old.outlier_share)} -> {percent(new.outlier_share)} of "
            f"the patches, 99 % quantile over median {old.p99_over_median:.2f} -> {new.p99_over_median:.2f}."
        ]
        if self.left:
            others = [block for block in self.left if block not in self.plan.blocks]
            blocks = sorted({*self.plan.blocks, *others[:1]})
            more = f", or add an adapter there (`layers_to_transform`: {blocks})" if others else ""
            left = ", ".join(map(str, self.left))
            lines.append(f"Artifacts are left after the blocks {left}: train longer (`max_steps`){more}.")
        return lines

    def table(self) -> str:
        """Both audits as a markdown table."""
        header = ["block", "outliers", "outliers, cleaned", "p99 / median", "p99 / median, cleaned"]
        return markdown_table(header, self.rows())

    def save(self, folder: Path) -> None:
        """Writes ``report.html``, ``audit.json``, ``figures/`` and the picture of the card, if it can draw them.

        Args:
            folder: The run's folder.
        """
        if importlib.util.find_spec("matplotlib") is None:
            logger.warning("no page and no picture: matplotlib is not installed (pip install 'singer-hf[plots]')")
            return
        snapshots = [self.before_snapshot, self.after_snapshot]
        AuditReport([self.before, self.after], source="the training images", snapshots=snapshots).save(folder)
        before_after_maps(*snapshots).savefig(folder / PICTURE, dpi=140)


def _snapshot(inputs: CleaningInputs, model: nn.Module, images: Tensor, name: str) -> Snapshot:
    spec = None if inputs.processor is None else image_spec(inputs.processor)
    scale = {} if spec is None else {"mean": spec.mean, "std": spec.std}
    return take_snapshot(model, images, name=name, inline=True, **scale)
