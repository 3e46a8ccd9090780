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
from singer_hf.inspection.report.maps import norm_maps, outlier_positions, pca_maps, similarity_maps
from singer_hf.inspection.report.tables import comparison_table, model_section
from singer_hf.inspection.report.verdict import has_artifacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figures have a higher resolution than they are shown at, for sharp text on high-density screens.
_DRAWN_DPI, _SHOWN_DPI, _SCROLLED_INCHES = 140, 100, 7.5


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
        snapshots: The features of a few images, one per model and in the same order.
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
    for number, (result, snapshot) in enumerate(zip(results, snapshots, strict=True)):
        figures += _model_figures(result, snapshot, f"{number + 1}_" if len(results) > 1 else "")
    patch = _largest_patch(snapshots[0]) if patch is None else patch
    figures.append(
        ReportFigure(
            "similarity",
            "Similarity to one patch",
            "Cosine similarity of every patch to the one at the red cross. An artifact is similar to other artifacts "
            "and to no neighbour; any other patch is similar to the rest of its object.",
            similarity_maps(snapshots, patch),
        )
    )
    figures.append(
        ReportFigure(
            "components",
            "Principal components as colours",
            "The three leading principal components of the patch tokens as red, green and blue. Colours can be "
            "compared within a row, but not between rows. Isolated spots without a counterpart in the image are "
            "artifacts.",
            pca_maps(snapshots),
        )
    )
    return figures


def _model_figures(result: AuditResult, snapshot: Snapshot, prefix: str) -> list[ReportFigure]:
    figures = [
        ReportFigure(
            f"{prefix}norm_maps",
            f"Norm maps of {result.name}",
            f"{result.name}: norm of every patch, images by blocks, on one colour scale. Single bright patches are "
            "high-norm outliers.",
            norm_maps(snapshot),
        ),
        ReportFigure(
            f"{prefix}norm_histograms",
            f"Norm histograms of {result.name}",
            f"{result.name}: distribution of the patch norms over all {result.num_images} images, both axes "
            "logarithmic. Artifacts form a second peak far to the right.",
            norm_histograms(result),
        ),
    ]
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
    *,
    subtitle: str,
    comparisons: Mapping[str, Sequence[Mapping]] | None = None,
) -> str:
    """Returns the page as one string of HTML.

    Args:
        results: One audit per model.
        figures: The figures, see :func:`draw_report_figures`.
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
        models=[model_section(result) for result in results],
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
        "wide": entry.figure.get_figwidth() > _SCROLLED_INCHES,
    }
