"""The outcome of a cleaning: both audits as a table, a picture, and a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from singer_hf.cleaning.images import CleaningInputs
from singer_hf.cleaning.plan import CleaningPlan
from singer_hf.data.image_processors import image_spec
from singer_hf.inspection.audit_report import AuditReport
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.snapshots import Snapshot, take_snapshot
from singer_hf.inspection.report.before_after import before_after_maps
from singer_hf.inspection.report.verdict import has_artifacts, percent
from singer_hf.tuner.layer import find_singer_layers, raw_features

PICTURE = "before_after.png"
_SHOWN = 4


@dataclass
class CleaningReport:
    """Both audits of a cleaning.

    Attributes:
        name: Name of the teacher.
        plan: The plan, with the audit before.
        after: The audit of the cleaned teacher as it runs; None until it is trained.
    """

    name: str
    plan: CleaningPlan
    after: AuditResult | None = None

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


def write_cleaning_report(folder: Path, model: nn.Module, inputs: CleaningInputs, report: CleaningReport) -> None:
    """Writes ``report.html``, ``audit.json``, ``figures/`` and the picture of the card.

    Args:
        folder: The run's folder.
        model: The cleaned teacher.
        inputs: The images and the processor.
        report: Both audits.
    """
    shown = _worst_images(inputs.batches, report.before)
    spec = {} if inputs.processor is None else _normalization(inputs.processor)
    layers = find_singer_layers(model).values()
    with raw_features(layers):
        before = take_snapshot(model, shown, name=report.before.name, inline=True, **spec)
    after = take_snapshot(model, shown, name=report.after.name, inline=True, **spec)
    AuditReport([report.before, report.after], source="the training images", snapshots=[before, after]).save(folder)
    _draw(folder / PICTURE, before, after)


def _normalization(processor: Any) -> dict[str, Any]:
    spec = image_spec(processor)
    return {"mean": spec.mean, "std": spec.std}


def _worst_images(batches: list[torch.Tensor], audit: AuditResult) -> torch.Tensor:
    """The images (K, 3, H, W) with the longest patch tokens in an audit, worst first."""
    return torch.cat(batches)[[ranked["image"] for ranked in audit.worst_images[:_SHOWN]]]


def _draw(file: Path, before: Snapshot, after: Snapshot) -> None:
    before_after_maps(before, after).savefig(file, dpi=140)
