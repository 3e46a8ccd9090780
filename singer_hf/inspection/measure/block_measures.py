"""From the sums of an audit to the measures of each block."""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from singer_hf.artifacts.directions import defect_directions
from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.inspection.measure.audit_result import QUANTILES, BlockAudit
from singer_hf.inspection.measure.token_sums import StreamingSums, coarse_histogram, edge_masks, histogram_quantile
from singer_hf.vit.view import ViTView

# A norm of 0 is no use as a denominator, and JSON knows no infinity.
_TINY = 1e-12


def summarise_blocks(
    sums: StreamingSums,
    indices: Sequence[int],
    grid: tuple[int, int],
    rule: OutlierRule,
    view: ViTView,
    attention_notes: dict[int, str] | None = None,
) -> list[BlockAudit]:
    """Turns sums over images into one :class:`BlockAudit` per block.

    Args:
        sums: The sums; row j belongs to block ``indices[j]``.
        indices: 0-based block indices in rising order.
        grid: (rows, columns) of patches.
        rule: The rule by which outliers were counted.
        view: View of the model, for the directions its weights write.
        attention_notes: Why the attention of a block could not be read; None for refined features, where what follows
            a block (persistence, attention) is not defined.
    """
    counts = sums["positions"].sum(1)
    means = [sums["direction_outliers"][row] / max(int(count), 1) for row, count in enumerate(counts)]
    written = {index: _written(view, index) for row, index in enumerate(indices) if counts[row]}
    blocks = []
    for row, index in enumerate(indices):
        fields = (
            _norm_fields(sums, row) | _outlier_fields(sums, row, rule) | _place_fields(sums["positions"][row], grid)
        )
        fields |= _texture_fields(sums, row) | _cosine_fields(sums, row) | {"kd_shares": _kd_shares(sums, row)}
        fields |= _defect_fields(means[row], index, written)
        fields |= _following_fields(sums, row, index, attention_notes, is_last=row == len(indices) - 1)
        blocks.append(BlockAudit(block=index, **fields))
    return blocks


def _written(view: ViTView, index: int) -> dict[str, Tensor]:
    return {part: direction.cpu().double() for part, direction in defect_directions(view, index).items()}


def _count(sums: StreamingSums, row: int) -> int:
    return int(sums["positions"][row].sum())


def _total(sums: StreamingSums, row: int) -> int:
    return int(sums["histogram"][row].sum())


def _share(part: Tensor | float, whole: Tensor | float) -> float:
    return min(max(float(part) / max(float(whole), _TINY), 0.0), 1.0)


def _norm_fields(sums: StreamingSums, row: int) -> dict:
    histogram, lowest, highest = sums["histogram"][row], float(sums.lowest[row]), float(sums.highest[row])
    quantiles = {name: histogram_quantile(histogram, q, lowest, highest) for name, q in QUANTILES.items()}
    quantiles["max"] = highest
    median = max(quantiles["p50"], _TINY)
    return {
        "norm_quantiles": quantiles,
        "norm_mean": float(sums["norm"][row]) / _total(sums, row),
        "p99_over_median": quantiles["p99"] / median,
        "max_over_median": highest / median,
        "histogram": coarse_histogram(histogram),
    }


def _outlier_fields(sums: StreamingSums, row: int, rule: OutlierRule) -> dict:
    count, total = _count(sums, row), _total(sums, row)
    num_images = total // sums["positions"].shape[1]
    return {
        "outlier_count": count,
        "outlier_share": count / total,
        "outlier_strength": float(sums["strength"][row]) / count if count else None,
        "images_with_outliers": int(sums["images_with_outliers"][row]) / num_images,
        "absolute_share": None if rule.absolute is None else int(sums["above_absolute"][row]) / total,
    }


def _place_fields(positions: Tensor, grid: tuple[int, int]) -> dict:
    positions, count = positions.view(grid), int(positions.sum())
    fields: dict = {"positions": positions.tolist()}
    for name, mask in zip(("border", "corner"), edge_masks(grid), strict=True):
        fields[f"{name}_share"] = int(positions[mask].sum()) / count if count else None
        fields[f"{name}_expected"] = int(mask.sum()) / prod(grid)
    return fields


def _texture_fields(sums: StreamingSums, row: int) -> dict:
    count, total = _count(sums, row), _total(sums, row)
    outliers, everything = float(sums["texture_outliers"][row]), float(sums["texture"][row])
    return {
        "texture_outliers": outliers / count if count else None,
        "texture_others": (everything - outliers) / max(total - count, 1),
        "texture_rank": float(sums["texture_rank_outliers"][row]) / count if count else None,
    }


def _cosine_fields(sums: StreamingSums, row: int) -> dict:
    count, total = _count(sums, row), _total(sums, row)
    outliers, everything = sums["direction_outliers"][row], sums["direction"][row]
    return {
        "outlier_cosine": _mean_cosine(outliers, count),
        "other_cosine": _mean_cosine(everything - outliers, total - count),
    }


def _mean_cosine(summed: Tensor, count: int) -> float | None:
    """Mean cosine over all pairs of ``count`` unit vectors: ``(‖Σu‖² - n) / (n (n - 1))``."""
    if count < 2:
        return None
    cosine = (float(summed.square().sum()) - count) / (count * (count - 1))
    return min(max(cosine, -1.0), 1.0)


def _kd_shares(sums: StreamingSums, row: int) -> dict[str, float]:
    pairs = {
        "loss_zero": "square",
        "gradient_zero": "norm",
        "loss_mean": "deviation_square",
        "gradient_mean": "deviation",
    }
    return {name: _share(sums[f"{key}_outliers"][row], sums[key][row]) for name, key in pairs.items()}


def _defect_fields(mean: Tensor, index: int, written: dict[int, dict[str, Tensor]]) -> dict:
    """Cosines of the outliers' mean direction to what the blocks up to this one write most strongly."""
    if index not in written:
        return {"defect_cosine": None, "defect_source": None}
    own = {part: _absolute_cosine(mean, direction) for part, direction in written[index].items()}
    candidates = [
        {"block": block, "part": part, "cosine": _absolute_cosine(mean, direction)}
        for block, directions in written.items()
        if block <= index
        for part, direction in directions.items()
    ]
    return {
        "defect_cosine": {"mlp": None, "attention": None} | own,
        "defect_source": max(candidates, key=lambda candidate: candidate["cosine"]),
    }


def _absolute_cosine(mean_of_units: Tensor, direction: Tensor) -> float:
    return min(abs(float(mean_of_units @ direction)), 1.0)


def _following_fields(
    sums: StreamingSums, row: int, index: int, attention_notes: dict[int, str] | None, *, is_last: bool
) -> dict:
    fields = dict.fromkeys(("persistence", "attention_share", "attention_uniform", "attention_note"))
    count = _count(sums, row)
    if attention_notes is None:
        return fields | {"attention_note": "refined features: the following block was not run on them"}
    if is_last:
        return fields | {"attention_note": "no block follows"}
    if not count:
        return fields | {"attention_note": "no outliers"}
    fields["persistence"] = int(sums["persistent"][row]) / count
    images = float(sums["attention_images"][row])
    if not images:
        return fields | {"attention_note": attention_notes[index + 1]}
    for name, key in (("attention_share", "attention"), ("attention_uniform", "attention_uniform")):
        fields[name] = float(sums[key][row]) / images
    return fields
