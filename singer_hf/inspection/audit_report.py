"""The report of an audit: results, verdicts, figures and page, in a notebook and in a folder."""

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from html import escape
from pathlib import Path

from singer_hf.inspection.measure.audit_result import AuditResult, read_audit
from singer_hf.inspection.measure.snapshots import Snapshot
from singer_hf.inspection.report.page import ReportFigure, draw_report_figures, figure_png, render_report
from singer_hf.inspection.report.verdict import Verdict, judge

_FRAME = '<iframe srcdoc="{page}" title="Feature audit" style="width: 100%; height: 48rem; border: 0"></iframe>'


@dataclass
class AuditReport:
    """The audits of one or several models on the same images.

    Attributes:
        results: One audit per model; the first is the teacher.
        comparisons: Title -> result of :func:`singer_hf.inspection.measure.feature_comparison.compare_features`.
        source: Name of the images.
        snapshots: Features of the images in the figures, one per model; empty in a loaded report.
        day: Day of the audit, such as "2026-11-22".
    """

    results: list[AuditResult]
    comparisons: Mapping[str, list[dict]] = field(default_factory=dict)
    source: str = "the given images"
    snapshots: list[Snapshot] = field(default_factory=list, repr=False, compare=False)
    day: str = field(default_factory=lambda: date.today().isoformat())

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Name of the model -> verdict."""
        teacher = self.results[0].name
        rows = [self.comparisons.get(compared(result.name, teacher)) for result in self.results]
        return {result.name: judge(result, own) for result, own in zip(self.results, rows, strict=True)}

    @property
    def verdict(self) -> Verdict:
        """The verdict on the model, of several models on the first."""
        return self.verdicts[self.results[0].name]

    @cached_property
    def figures(self) -> list[ReportFigure]:
        """The figures, in the order of the page; none without matplotlib."""
        if importlib.util.find_spec("matplotlib") is None:
            return []
        return draw_report_figures(self.results, self.snapshots)

    @cached_property
    def page(self) -> str:
        """The page, one string of HTML without external resources."""
        subtitle = f"{self.results[0].num_images} images of {self.source}, {self.day}"
        return render_report(
            self.results, self.figures, self.verdicts, subtitle=subtitle, comparisons=self.comparisons
        )

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes ``audit.json``, ``figures/*.png`` and ``report.html``.

        Args:
            folder: The folder; it is created if needed.

        Returns:
            Path of the page.

        Raises:
            ValueError: If the folder cannot be written.
        """
        folder = prepare_folder(folder)
        (folder / "audit.json").write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        for entry in self.figures:
            (folder / "figures" / f"{entry.name}.png").write_bytes(figure_png(entry.figure))
        (folder / "report.html").write_text(self.page, encoding="utf-8")
        return folder / "report.html"

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "AuditReport":
        """Loads the numbers of a saved report; its maps are in the folder and are not drawn again.

        Args:
            folder: Folder with ``audit.json``, or the file.
        """
        data = read_audit(folder)
        results = [AuditResult.from_dict(model) for model in data["models"]]
        return cls(results, data["comparisons"], data.get("source", ""), day=data.get("day", ""))

    def to_dict(self) -> dict:
        """Returns the report as plain data."""
        models = [result.to_dict() for result in self.results]
        return {"source": self.source, "day": self.day, "models": models, "comparisons": dict(self.comparisons)}

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.verdicts.values()))

    def _repr_html_(self) -> str:
        # In a frame, because the styles of the page would change the notebook.
        return _FRAME.format(page=escape(self.page))


def compared(student: str, teacher: str) -> str:
    """Returns the title of a comparison."""
    return f"{student} compared with {teacher}"


def prepare_folder(path: str | os.PathLike) -> Path:
    """Creates a folder for a report, so that a folder that cannot be written is refused before any work.

    Raises:
        ValueError: If it cannot be written.
    """
    folder = Path(path)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`output_dir` must be a folder that can be written, got {str(path)!r}: {error}") from error
    if not os.access(folder / "figures", os.W_OK):
        raise ValueError(f"`output_dir` must be a folder that can be written, got {str(path)!r}")
    return folder
