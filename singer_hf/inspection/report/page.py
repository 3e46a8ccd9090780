"""One self-contained HTML page on one or several audits: verdict, pictures, tables. It loads nothing from anywhere."""

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
from singer_hf.inspection.report.verdict import is_hit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pictures are drawn finer than they are shown, for sharp text on dense screens.
_DRAWN_DPI, _SHOWN_DPI, _SCROLLED_INCHES = 140, 100, 7.5


@dataclass(frozen=True)
class Picture:
    """A figure with what to say about it.

    Attributes:
        key: File name without its ending.
        title: What it shows, for readers who cannot see it.
        caption: How to read it.
        figure: The figure.
    """

    key: str
    title: str
    caption: str
    figure: "Figure"


def audit_pictures(
    results: Sequence[AuditResult], snapshots: Sequence[Snapshot], patch: tuple[int, int] | None = None
) -> list[Picture]:
    """The figures of a report, in the order in which they are read.

    Args:
        results: One audit per model.
        snapshots: The features of a few images, one per model and in the same order.
        patch: (row, column) of the patch others are compared with; by default the longest of the first image in the
            last block of the first model.
    """
    pictures = [
        Picture(
            "quantiles",
            "Patch norms over depth",
            "Solid: median, dashed: 99 % quantile, dotted: largest norm. Without artifacts the three stay close; a "
            "dashed or dotted line that leaves the solid one marks the block in which they appear.",
            quantile_curves(results),
        )
    ]
    for number, (result, snapshot) in enumerate(zip(results, snapshots, strict=True)):
        pictures += _model_pictures(result, snapshot, f"{number + 1}_" if len(results) > 1 else "")
    patch = _longest_patch(snapshots[0]) if patch is None else patch
    pictures.append(
        Picture(
            "similarity",
            "Similarity to one patch",
            "Cosine similarity of every patch to the one at the red cross. An artifact resembles other artifacts and "
            "nothing around it; a clean patch resembles the rest of its object.",
            similarity_maps(snapshots, patch),
        )
    )
    pictures.append(
        Picture(
            "components",
            "Principal components as colours",
            "The three leading components of the patch tokens as red, green and blue. Colours can be compared along a "
            "row, not between rows. Specks that follow nothing in the picture are artifacts.",
            pca_maps(snapshots),
        )
    )
    return pictures


def _model_pictures(result: AuditResult, snapshot: Snapshot, prefix: str) -> list[Picture]:
    pictures = [
        Picture(
            f"{prefix}norm_maps",
            f"Norm maps of {result.name}",
            f"{result.name}: the norm of every patch, images by blocks, one colour scale. Single bright patches are "
            "high-norm outliers.",
            norm_maps(snapshot),
        ),
        Picture(
            f"{prefix}norm_histograms",
            f"Norm histograms of {result.name}",
            f"{result.name}: how patch norms are distributed over all {result.num_images} images, both axes "
            "logarithmic. Artifacts are a second hump far to the right.",
            norm_histograms(result),
        ),
    ]
    if any(map(is_hit, result.blocks)):
        pictures += [
            Picture(
                f"{prefix}outlier_shares",
                f"What the outliers of {result.name} claim",
                f"{result.name}: the outliers' share of the patches, of a plain MSE to these features (for a student "
                "that predicts each image's mean patch), of its gradient, and of the next block's attention.",
                outlier_shares(result),
            ),
            Picture(
                f"{prefix}outlier_positions",
                f"Where the outliers of {result.name} sit",
                f"{result.name}: at every place of the grid the share of the images with an outlier there.",
                outlier_positions(result),
            ),
        ]
    for block in (result.adapter or {}).get("blocks", []):
        index = block["block"]
        pictures.append(
            Picture(
                f"{prefix}spectrum_block_{index}",
                f"What reads the features of block {index}",
                f"{result.name}: how strongly what reads the features of block {index} reads each direction. A safe "
                "adapter of rank r lives in the marked ones.",
                singular_spectrum(block["singular_values"], block["r"], f"What reads block {index}"),
            )
        )
    return pictures


def _longest_patch(snapshot: Snapshot) -> tuple[int, int]:
    return divmod(int(snapshot.norms[-1][0].argmax()), snapshot.grid[1])


def render_report(
    results: Sequence[AuditResult],
    pictures: Sequence[Picture],
    *,
    subtitle: str,
    comparisons: Mapping[str, Sequence[Mapping]] | None = None,
) -> str:
    """The page as one string of HTML.

    Args:
        results: One audit per model.
        pictures: The figures, see :func:`audit_pictures`.
        subtitle: One line on images, sample and date.
        comparisons: Title -> what :func:`singer_hf.inspection.measure.feature_comparison.compare_features` gave.
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
        pictures=[_embedded(picture) for picture in pictures],
        comparisons=[{"title": key, "table": comparison_table(rows)} for key, rows in (comparisons or {}).items()],
        rule=f"the median plus {rule['mad_factor']:g} times the larger of the median absolute deviation and "
        f"{rule['mad_floor']:g} times the median",
    )


def figure_png(figure: "Figure") -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DRAWN_DPI)
    return buffer.getvalue()


def _embedded(picture: Picture) -> dict:
    data = figure_png(picture.figure)
    width, height = (round(inches * _SHOWN_DPI) for inches in picture.figure.get_size_inches())
    return {
        "png": base64.b64encode(data).decode("ascii"),
        "title": picture.title,
        "caption": picture.caption,
        "width": width,
        "height": height,
        "wide": picture.figure.get_figwidth() > _SCROLLED_INCHES,
    }
