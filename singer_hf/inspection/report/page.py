"""Self-contained HTML page of one or several audits: verdicts, figures and tables, without external resources."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.snapshots import Snapshot
from singer_hf.inspection.report.curves import norm_histograms, outlier_shares, quantile_curves, singular_spectrum
from singer_hf.inspection.report.maps import (
    norm_maps,
    outlier_positions,
    pca_maps,
    relative_norm_maps,
    similarity_maps,
)
from singer_hf.inspection.report.tables import comparison_table, model_section, summary_table
from singer_hf.inspection.report.verdict import Verdict, has_artifacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figures have a higher resolution than they are shown at, for sharp text on high-density screens.
_DRAWN_DPI, _SHOWN_DPI = 140, 100
# Printed pages show figures up to this width lower than others.
_NARROW_INCHES = 7.0


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its file name, title and caption.

    Attributes:
        name: File name without extension.
        title: Alternative text of the image.
        caption: How to read the figure.
        figure: The matplotlib figure.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"


def draw_report_figures(
    results: Sequence[AuditResult], snapshots: Sequence[Snapshot], patch: tuple[int, int] | None = None
) -> list[ReportFigure]:
    """Draws the figures of a report, in the order of the page.

    Args:
        results: One audit per model.
        snapshots: The features of a few images, one per model and in the same order; empty for no maps.
        patch: (row, column) of the patch with which all others are compared; by default the one with the largest
            norm of the first image after the last block of the first model.
    """
    figures = [
        ReportFigure(
            "quantiles",
            "Patch norms over depth",
            "Solid: median, dashed: 99 % quantile, dotted: largest norm, each over all patches. Without artifacts the "
            "three lines stay close; artifacts appear in the block where the dashed or dotted line rises.",
            quantile_curves(results),
        )
    ]
    if snapshots and len(results) > 1:
        figures.append(
            ReportFigure(
                "models",
                "Patch norms of all models",
                "Norms after the last block relative to the median of the model, all on one logarithmic scale. "
                + _choice(results[0], len(snapshots[0].images)),
                relative_norm_maps(snapshots),
            )
        )
    for number, result in enumerate(results):
        shown = snapshots[number] if snapshots else None
        figures += _model_figures(result, shown, f"{number + 1}_" if len(results) > 1 else "")
    return figures + _feature_figures(snapshots, patch) if snapshots else figures


def _choice(result: AuditResult, count: int) -> str:
    """Says which images are shown: those with the longest patch tokens, longest first."""
    shown = result.worst_images[:count]
    if not shown:
        return ""
    ratios = [f"{image['max_over_median']:.1f}" for image in shown]
    listed = ratios[0] if len(ratios) == 1 else f"{', '.join(ratios[:-1])} and {ratios[-1]}"
    which = "The image is that" if count == 1 else f"The {len(shown)} images are those"
    return (
        f"{which} of {result.num_images} whose longest patch token is longest after block {shown[0]['block']} of "
        f"{result.name}, worst first: {listed} times the median of the image."
    )


def _feature_figures(snapshots: Sequence[Snapshot], patch: tuple[int, int] | None) -> list[ReportFigure]:
    patch = _largest_patch(snapshots[0]) if patch is None else patch
    return [
        ReportFigure(
            "similarity",
            "Similarity to one patch",
            "Cosine of every patch to the one at the cross: red along, blue against, white at right angles. An "
            "artifact is similar to other artifacts and to no neighbour; any other patch is similar to the rest of "
            "its object.",
            similarity_maps(snapshots, patch),
        ),
        ReportFigure(
            "components",
            "Principal components as colours",
            "The three leading principal components of the patch tokens as red, green and blue. Colours can be "
            "compared within a row, but not between rows. Isolated spots without a counterpart in the image are "
            "artifacts.",
            pca_maps(snapshots),
        ),
    ]


def _model_figures(result: AuditResult, snapshot: Snapshot | None, prefix: str) -> list[ReportFigure]:
    figures = []
    if snapshot is not None:
        caption = (
            f"{result.name}: norm of every patch, images by blocks, on one colour scale. Single bright patches are "
            "high-norm outliers."
        )
        chosen = "" if prefix else f" {_choice(result, len(snapshot.images))}"
        figures.append(
            ReportFigure(f"{prefix}norm_maps", f"Norm maps of {result.name}", caption + chosen, norm_maps(snapshot))
        )
    figures.append(
        ReportFigure(
            f"{prefix}norm_histograms",
            f"Norm histograms of {result.name}",
            f"{result.name}: distribution of the patch norms over all {result.num_images} images, both axes "
            "logarithmic. Artifacts form a second peak far to the right.",
            norm_histograms(result),
        )
    )
    if any(map(has_artifacts, result.blocks)):
        figures += [
            ReportFigure(
                f"{prefix}outlier_shares",
                f"Shares of the outliers of {result.name}",
                f"{result.name}: the outliers' share of the patches, of a plain MSE to these features (for a student "
                "that predicts each image's mean patch token), of its gradient, and of the next block's attention.",
                outlier_shares(result),
            ),
            ReportFigure(
                f"{prefix}outlier_positions",
                f"Positions of the outliers of {result.name}",
                f"{result.name}: share of the images with an outlier at each grid position.",
                outlier_positions(result),
            ),
        ]
    return figures + _spectra(result, prefix)


def _spectra(result: AuditResult, prefix: str) -> list[ReportFigure]:
    figures = []
    for block in (result.adapter or {}).get("blocks", []):
        index = block["block"]
        figures.append(
            ReportFigure(
                f"{prefix}spectrum_block_{index}",
                f"Singular values of the block that follows block {index}",
                f"{result.name}: singular values of the input projections after block {index}. The "
                "energy of a safe adapter of rank r is in the marked directions.",
                singular_spectrum(block["singular_values"], block["r"], f"Singular values after block {index}"),
            )
        )
    return figures


def _largest_patch(snapshot: Snapshot) -> tuple[int, int]:
    return divmod(int(snapshot.norms[-1][0].argmax()), snapshot.grid[1])


def render_report(
    results: Sequence[AuditResult],
    figures: Sequence[ReportFigure],
    verdicts: Mapping[str, Verdict],
    *,
    subtitle: str,
    comparisons: Mapping[str, Sequence[Mapping]] | None = None,
) -> str:
    """Returns the page as one string of HTML.

    Args:
        results: One audit per model.
        figures: The figures, see :func:`draw_report_figures`.
        verdicts: Name of the model -> verdict.
        subtitle: One line on images, sample and date.
        comparisons: Title -> result of :func:`singer_hf.inspection.measure.feature_comparison.compare_features`.
    """
    environment = Environment(
        loader=PackageLoader("singer_hf.inspection.report"), autoescape=True, undefined=StrictUndefined
    )
    names = " and ".join(result.name for result in results) if len(results) < 3 else f"{len(results)} models"
    rule = results[0].rule
    return environment.get_template("report.html").render(
        title=f"Feature audit of {names}",
        subtitle=subtitle,
        summary=summary_table(results, verdicts, comparisons or {}) if len(results) > 1 else None,
        models=[model_section(result, verdicts[result.name]) for result in results],
        figures=[_embedded(figure) for figure in figures],
        comparisons=[{"title": key, "table": comparison_table(rows)} for key, rows in (comparisons or {}).items()],
        rule=f"the median plus {rule['mad_factor']:g} times the larger of the median absolute deviation and "
        f"{rule['mad_floor']:g} times the median",
    )


def figure_png(figure: "Figure") -> bytes:
    """Returns the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DRAWN_DPI)
    return buffer.getvalue()


def _embedded(entry: ReportFigure) -> dict:
    width, height = (round(inches * _SHOWN_DPI) for inches in entry.figure.get_size_inches())
    return {
        "png": base64.b64encode(figure_png(entry.figure)).decode("ascii"),
        "title": entry.title,
        "caption": entry.caption,
        "width": width,
        "height": height,
        "wide": entry.figure.get_figwidth() > _NARROW_INCHES,
    }
