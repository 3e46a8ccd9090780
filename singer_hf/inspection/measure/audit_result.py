"""What an audit finds, as plain data that is saved as ``audit.json`` and read back."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

SCHEMA = 1
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
    """Measures of the patch tokens after one block, before the final norm. None stands for "not defined here".

    Attributes:
        block: 0-based block index.
        norm_quantiles: L2 norm at the 5, 25, 50, 75, 95, 97, 99 and 99.9 % quantile (to within 0.27 %) and ``max``
            (exact), over all patches of all images.
        norm_mean: Mean L2 norm.
        p99_over_median: 99 % quantile over the median.
        max_over_median: Largest norm over the median.
        outlier_count: Outliers by the rule of the audit.
        outlier_share: Their share of all patches, in [0, 1].
        outlier_strength: Mean of an outlier's norm over the median norm of its image, or None without outliers.
        images_with_outliers: Share of images with at least one.
        absolute_share: Share of patches above the absolute threshold, None if none was given.
        border_share: Share of the outliers on the outermost ring of the grid; ``border_expected`` is the ring's share
            of the grid.
        border_expected: See ``border_share``.
        corner_share: Share of the outliers on the four corner patches; ``corner_expected`` as for the border.
        corner_expected: See ``corner_share``.
        texture_outliers: Mean pixel standard deviation inside outlier patches, in units of ``pixel_values``.
        texture_others: The same for all other patches.
        texture_rank: Mean rank of the outliers' texture in their image: 0 smoothest, 1 roughest, .5 no relation.
        persistence: Share of the outliers that are outliers after the next block too, None for the last block.
        outlier_cosine: Mean cosine of all pairs of outliers, across images; None with fewer than two.
        other_cosine: Mean cosine of all pairs of other patches, to compare with.
        defect_cosine: |cosine| of the outliers (mean over them) to the leading left singular direction of the block's
            own writes, ``{"mlp": ..., "attention": ...}``; None without outliers.
        defect_source: The block and part, at or before this one, whose direction the outliers follow most, with its
            cosine: ``{"block": 2, "part": "mlp", "cosine": .98}``; None without outliers.
        kd_shares: What the outliers claim of a plain MSE to these tokens, each in [0, 1]: ``loss_zero`` and
            ``gradient_zero`` for a student that predicts 0, ``loss_mean`` and ``gradient_mean`` for one that predicts
            the mean patch token of each image. ``gradient`` is the share of the summed per-token gradient norms.
        attention_share: Share of the attention that patches of the next block pay to the outliers, mean over the
            images that have some; None where it could not be had, see ``attention_note``.
        attention_uniform: The share the outliers would get if attention were uniform.
        attention_note: Why ``attention_share`` is None.
        positions: Number of outliers at every place of the grid, rows x columns.
        histogram: Norm histogram, ``edges`` (n + 1, equal steps in log) and ``counts`` (n).
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


@dataclass
class AuditResult:
    """The audit of one model on one set of images.

    Attributes:
        name: What to call the model in tables and figures.
        architecture: Class of the model.
        num_images: Images audited.
        image_size: (height, width) in pixels.
        grid: (rows, columns) of patches.
        patch_size: (height, width) of a patch in pixels.
        hidden_size: Width of the tokens.
        num_prefix_tokens: Class, distillation and register tokens; not part of any measure.
        rule: The outlier rule, see :class:`singer_hf.artifacts.outliers.OutlierRule`.
        blocks: One entry per block, on the raw features.
        refined: One entry per block with a SiNGER adapter, on the refined features; empty without an adapter.
        adapter: Null-space measures of the adapter, see :mod:`singer_hf.inspection.measure.nullspace_report`; None without.
        notes: What the reader has to know, such as a smaller batch for want of memory.
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

    def to_dict(self) -> dict:
        """Everything as plain data."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict) -> "AuditResult":
        """The reverse of :meth:`to_dict`.

        Raises:
            ValueError: If the data were written by another version of the format.
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
    def load(cls, path: str | Path) -> "AuditResult":
        """Reads what :meth:`save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text()))
