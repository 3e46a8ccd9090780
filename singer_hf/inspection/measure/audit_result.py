"""Result of an audit as plain data, saved to and loaded from ``audit.json``."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

SCHEMA = 2
QUANTILES = {
    "p5": 0.05,
    "p25": 0.25,
    "p50": 0.5,
    "p75": 0.75,
    "p95": 0.95,
    "p97": 0.97,
    "p99": 0.99,
    "p99.9": 0.999,
    "max": 1.0,
}


@dataclass(frozen=True)
class BlockAudit:
    """Metrics of the patch tokens after one block, before the final norm. None stands for "not defined here".

    Attributes:
        block: 0-based block index.
        norm_quantiles: L2 norm at the 5, 25, 50, 75, 95, 97, 99 and 99.9 % quantile and ``max``, over all patches of
            all images; exact, see :func:`singer_hf.artifacts.outliers.norm_quantiles`.
        norm_mean: Mean L2 norm.
        p99_over_median: 99 % quantile over the median of an image's patch norms, mean over images; see
            :func:`singer_hf.artifacts.outliers.outlier_ratio`.
        max_over_median: Largest norm of all images over the median of all norms.
        outlier_count: Number of outliers by the rule of the audit.
        outlier_share: Their share of all patches, in [0, 1].
        outlier_strength: Norm of an outlier over the median norm of its image, mean over outliers.
        images_with_outliers: Share of images with at least one outlier.
        absolute_share: Share of patches above the absolute threshold, None without a threshold.
        border_share: Share of the outliers on the outermost ring of the grid.
        border_expected: Share of the grid's patches on that ring.
        corner_share: Share of the outliers on the four corner patches.
        corner_expected: Share of the grid's patches in the corners.
        texture_outliers: Mean texture of outlier patches. Texture is the standard deviation of the pixels inside a
            patch, in units of ``pixel_values``: the root of :func:`singer_hf.artifacts.texture.patch_variance`.
        texture_others: Mean texture of all other patches.
        texture_rank: Mean rank of the outliers' texture in their image: 0 smoothest, 1 roughest, 0.5 no relation.
        persistence: Share of the outliers that are outliers after the next block too, None for the last block.
        outlier_cosine: Mean cosine of all pairs of outliers, across images; None with fewer than two.
        other_cosine: Mean cosine of all pairs of other patches.
        defect_cosine: |cosine| of the outliers' mean direction to the leading left singular directions of the block,
            ``{"mlp": ..., "attention": ...}``; see :func:`singer_hf.artifacts.directions.defect_directions`.
        defect_source: The block and part, up to this block, whose direction is closest to the outliers, with its
            cosine: ``{"block": 2, "part": "mlp", "cosine": 0.98}``.
        kd_shares: Shares of a plain MSE to these tokens that the outliers cause, each in [0, 1]: ``loss_zero`` and
            ``gradient_zero`` for a student that predicts 0, ``loss_mean`` and ``gradient_mean`` for one that predicts
            the mean patch token of each image. ``gradient`` is the share of the summed per-token gradient norms.
        attention_share: Share of the next block's patch attention that the outliers receive, mean over images with
            outliers; if None, ``attention_note`` has the reason.
        attention_uniform: The share that they would receive under uniform attention.
        attention_note: Why ``attention_share`` is None.
        positions: Number of outliers at every grid position, rows x columns.
        histogram: Histogram of the norms, ``edges`` (n + 1, equal steps in log2) and ``counts`` (n).
        cross_cosine: Mean cosine of all pairs of an outlier and another patch.
        frequency_outliers: Mean over the outliers of :func:`singer_hf.artifacts.places.channel_roughness`, the
            distance of a token to its low-pass along the channels; it does not depend on the norm.
        frequency_others: The same mean over all other patches.
        frequency_p99_over_median: 99th percentile of this score over its median in an image, mean over images.
        class_attention_share: Share of the class token's attention to patches in the next block that the outliers
            receive, mean over images with outliers; None without a class token or if ``attention_note`` has a reason.
        class_attention_uniform: Share of the outliers among the patches of these images.
        former_share: Share of the patches that were outliers in an earlier block, or in this one before refinement,
            and are none after this block.
        former_cosine: Mean cosine of their tokens to the direction (mean unit vector) of the outliers of this block,
            or of the last block before it that has any.
        former_cosine_others: The same mean over all patches that are no outliers and never were.

    The fields from ``cross_cosine`` on are None in files that were written before they existed.
    """

    block: int
    norm_quantiles: dict[str, float]
    norm_mean: float
    p99_over_median: float
    max_over_median: float
    outlier_count: int
    outlier_share: float
    outlier_strength: float | None
    images_with_outliers: float
    absolute_share: float | None
    border_share: float | None
    border_expected: float
    corner_share: float | None
    corner_expected: float
    texture_outliers: float | None
    texture_others: float
    texture_rank: float | None
    persistence: float | None
    outlier_cosine: float | None
    other_cosine: float | None
    defect_cosine: dict[str, float | None] | None
    defect_source: dict | None
    kd_shares: dict[str, float]
    attention_share: float | None
    attention_uniform: float | None
    attention_note: str | None
    positions: list[list[int]]
    histogram: dict[str, list[float]]
    cross_cosine: float | None = None
    frequency_outliers: float | None = None
    frequency_others: float | None = None
    frequency_p99_over_median: float | None = None
    class_attention_share: float | None = None
    class_attention_uniform: float | None = None
    former_share: float | None = None
    former_cosine: float | None = None
    former_cosine_others: float | None = None


@dataclass
class AuditResult:
    """The audit of one model on one set of images.

    Attributes:
        name: Name of the model in tables and figures.
        architecture: Class of the model.
        num_images: Images audited.
        image_size: (height, width) in pixels.
        grid: (rows, columns) of patches.
        patch_size: (height, width) of a patch in pixels.
        hidden_size: Width of the tokens.
        num_prefix_tokens: Class, distillation and register tokens; not part of any metric.
        rule: The outlier rule, see :class:`singer_hf.artifacts.outliers.OutlierRule`.
        blocks: One entry per block, on the raw features.
        refined: One entry per block with a SiNGER adapter, on the refined features; empty without an adapter.
        adapter: Null-space metrics of the adapter, see :mod:`singer_hf.inspection.measure.nullspace_report`; None
            without an adapter.
        notes: Remarks for the reader, such as a reduced batch size.
        role: ``"teacher"``, or ``"student"`` for a model that was distilled; the advice depends on it.
        inline: Whether adapters were active: the audit of a cleaned teacher.
        worst_images: See :func:`singer_hf.inspection.measure.block_metrics.rank_images`.
    """

    name: str
    architecture: str
    num_images: int
    image_size: tuple[int, int]
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    hidden_size: int
    num_prefix_tokens: int
    rule: dict[str, float | None]
    blocks: list[BlockAudit]
    refined: list[BlockAudit] = field(default_factory=list)
    adapter: dict | None = None
    notes: list[str] = field(default_factory=list)
    role: Literal["teacher", "student"] = "teacher"
    inline: bool = False
    worst_images: list[dict] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Returns the result as plain data."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict) -> "AuditResult":
        """Returns the result of which ``data`` is the :meth:`to_dict`.

        Raises:
            ValueError: If the data have another version of the format.
        """
        values = dict(data)
        schema = values.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"`schema` must be {SCHEMA}, got {schema!r}; audit the model again")
        for name in ("image_size", "grid", "patch_size"):
            values[name] = tuple(values[name])
        for name in ("blocks", "refined"):
            values[name] = [BlockAudit(**block) for block in values[name]]
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Writes the result as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> "AuditResult":
        """Loads a result from a file written by :meth:`save`, by the command or by ``AuditReport.save``.

        Args:
            path: The file, or the folder with ``audit.json``.
            name: Name of the model, in a file of several.

        Raises:
            ValueError: If the file holds several models and none is named, or has another version of the format.
        """
        data = read_audit(path)
        models = data.get("models", [data])
        names = [model["name"] for model in models]
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            raise ValueError(f"`name` must be one of {names}, the models of {Path(path).name!r}, got {name!r}")
        return cls.from_dict(models[names.index(name)])


def read_audit(path: str | Path) -> dict:
    """Returns the content of an ``audit.json``.

    Args:
        path: The file or its folder.
    """
    file = Path(path)
    return json.loads((file / "audit.json" if file.is_dir() else file).read_text(encoding="utf-8"))
