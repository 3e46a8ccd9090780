"""Metrics of each block from the measurements of its patch tokens."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from singer_hf.artifacts.directions import defect_directions
from singer_hf.artifacts.outliers import OutlierRule, norm_quantiles, norm_statistics, row_median
from singer_hf.artifacts.places import cross_cosine, pair_cosine
from singer_hf.inspection.measure.audit_result import QUANTILES, BlockAudit
from singer_hf.inspection.measure.patch_measurements import PatchMeasurements
from singer_hf.vit.view import ViTView

# Smallest denominator: JSON has no infinity.
_TINY = 1e-12
_RANKED_IMAGES = 64
_BINS_PER_OCTAVE, _SMALLEST_NORM = 8, 2.0**-24


def compute_block_audits(
    measurements: PatchMeasurements,
    indices: Sequence[int],
    grid: tuple[int, int],
    rule: OutlierRule,
    view: ViTView,
    attention: Tensor | None = None,
    attention_notes: dict[int, str] | None = None,
    raw: PatchMeasurements | None = None,
) -> list[BlockAudit]:
    """Computes one :class:`BlockAudit` per measured block.

    Args:
        measurements: Measurements of the blocks; row j belongs to block ``indices[j]``.
        indices: 0-based block indices in ascending order.
        grid: (rows, columns) of patches.
        rule: The rule by which outliers were found.
        view: View of the model, for the singular directions of its weights.
        attention: Shares of the next block's attention that the outliers of an image receive, from the patches and
            from the class token, (2, L, M), NaN if not available; None for refined features, on which the next block
            was not run.
        attention_notes: Block index -> why the attention of the block is not available.
        raw: For refined features the measurements of all blocks on the raw ones.
    """
    texture = measurements.texture.double()
    # Sorted twice: the rank of each patch in its image, 0 for the smoothest and 1 for the roughest.
    rank = texture.argsort(dim=1).argsort(dim=1).double() / max(texture.shape[1] - 1, 1)
    directions: dict[int, dict[str, Tensor]] = {}
    blocks = []
    for row, index in enumerate(indices):
        norms, outliers = measurements.norms[row], measurements.outliers[row]
        if outliers.any():
            directions[index] = {part: d.cpu().double() for part, d in defect_directions(view, index).items()}
        fields = _norm_fields(norms) | _outlier_fields(norms, outliers, rule) | _place_fields(outliers, grid)
        fields |= _texture_fields(texture, rank, outliers) | _cosine_fields(measurements, row)
        fields |= _frequency_fields(measurements, row)
        fields |= _former_fields(measurements, row, *((measurements, row) if raw is None else (raw, index)))
        fields |= {"kd_shares": _kd_shares(norms, measurements.deviations[row], outliers)}
        fields |= _defect_fields(measurements, row, index, directions)
        following = measurements.outliers[row + 1] if row + 1 < len(indices) else None
        received = None if attention is None else attention[:, row]
        note = (attention_notes or {}).get(index + 1)
        fields |= _following_fields(outliers, following, received, note, view.num_prefix_tokens)
        blocks.append(BlockAudit(block=index, **fields))
    return blocks


def norm_histogram(norms: Tensor) -> dict[str, list[float]]:
    """Returns the histogram of patch norms in eight bins per octave.

    Args:
        norms: L2 norms (M, N).

    Returns:
        ``edges`` (n + 1, equal steps in log2) and ``counts`` (n), from the smallest to the largest norm.
    """
    logarithms = norms.double().clamp(min=_SMALLEST_NORM).log2().numpy() * _BINS_PER_OCTAVE
    steps = np.arange(np.floor(logarithms.min()), np.floor(logarithms.max()) + 2)
    counts, _ = np.histogram(logarithms, steps)
    return {"edges": (2 ** (steps / _BINS_PER_OCTAVE)).tolist(), "counts": counts.tolist()}


def rank_images(norms: Tensor, blocks: Sequence[BlockAudit]) -> list[dict]:
    """Returns the images with the longest patch tokens relative to their median, longest first, at most 64.

    Args:
        norms: L2 norms (L, M, N).
        blocks: The L blocks. The norms are compared in the one whose outliers have the largest share of the MSE, and
            without any outliers in the last.

    Returns:
        ``{"image": index, "block": block index, "max_over_median": ratio}`` for each image.
    """
    worst = max(blocks, key=lambda block: (block.kd_shares["loss_mean"], block.block)).block
    ratios = norms[worst].amax(dim=1).double() / row_median(norms[worst])[:, 0].clamp(min=_TINY)
    order = ratios.sort(descending=True, stable=True).indices[:_RANKED_IMAGES].tolist()
    return [{"image": i, "block": worst, "max_over_median": float(ratios[i])} for i in order]


def edge_masks(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns masks of the outermost ring of a grid and of its corners, each bool (rows, columns).

    The ring includes the corners.
    """
    ring = torch.ones(grid, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    corner = torch.zeros(grid, dtype=torch.bool)
    corner[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    return ring, corner


def _norm_fields(norms: Tensor) -> dict:
    statistics = norm_statistics(norms)
    return {
        "norm_quantiles": dict(zip(QUANTILES, norm_quantiles(norms, tuple(QUANTILES.values())), strict=True)),
        "norm_mean": float(norms.double().mean()),
        "p99_over_median": statistics["p99_over_median"],
        "max_over_median": statistics["max_over_median"],
        "histogram": norm_histogram(norms),
    }


def _outlier_fields(norms: Tensor, outliers: Tensor, rule: OutlierRule) -> dict:
    ratios = norms.double() / row_median(norms).clamp(min=_TINY)
    return {
        "outlier_count": int(outliers.sum()),
        "outlier_share": float(outliers.double().mean()),
        "outlier_strength": _mean(ratios[outliers]),
        "images_with_outliers": float(outliers.any(1).double().mean()),
        "absolute_share": None if rule.absolute is None else float((norms > rule.absolute).double().mean()),
    }


def _place_fields(outliers: Tensor, grid: tuple[int, int]) -> dict:
    positions = outliers.sum(0).view(grid)
    count = int(positions.sum())
    fields: dict = {"positions": positions.tolist()}
    for name, mask in zip(("border", "corner"), edge_masks(grid), strict=True):
        fields[f"{name}_share"] = int(positions[mask].sum()) / count if count else None
        fields[f"{name}_expected"] = int(mask.sum()) / prod(grid)
    return fields


def _texture_fields(texture: Tensor, rank: Tensor, outliers: Tensor) -> dict:
    return {
        "texture_outliers": _mean(texture[outliers]),
        "texture_others": _mean(texture[~outliers]) or 0.0,
        "texture_rank": _mean(rank[outliers]),
    }


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _cosine_fields(measurements: PatchMeasurements, row: int) -> dict:
    sums = measurements.outlier_directions[row], measurements.other_directions[row]
    counts = _counts(measurements.outliers[row])
    return {
        "outlier_cosine": pair_cosine(sums[0], counts[0]),
        "other_cosine": pair_cosine(sums[1], counts[1]),
        "cross_cosine": cross_cosine(*sums, *counts),
    }


def _former_fields(measurements: PatchMeasurements, row: int, source: PatchMeasurements, source_row: int) -> dict:
    """Returns the cosines of former outliers and of all other patches to the direction that the outliers had last."""
    count, others = int(measurements.former_counts[row]), _counts(measurements.outliers[row])[1]
    share = count / measurements.outliers[row].numel()
    if not count or count == others:
        return {"former_share": share, "former_cosine": None, "former_cosine_others": None}
    last = max(block for block in range(source_row + 1) if source.outliers[block].any())
    direction = torch.nn.functional.normalize(source.outlier_directions[last], dim=0)
    former = measurements.former_directions[row]
    rest = measurements.other_directions[row] - former
    return {
        "former_share": share,
        "former_cosine": float(former @ direction) / count,
        "former_cosine_others": float(rest @ direction) / (others - count),
    }


def _frequency_fields(measurements: PatchMeasurements, row: int) -> dict:
    outlier_sum, other_sum, ratio_sum = measurements.frequencies[row].tolist()
    outlier_count, other_count = _counts(measurements.outliers[row])
    return {
        "frequency_outliers": outlier_sum / outlier_count if outlier_count else None,
        "frequency_others": other_sum / other_count if other_count else None,
        "frequency_p99_over_median": ratio_sum / measurements.norms.shape[1],
    }


def _counts(outliers: Tensor) -> tuple[int, int]:
    return int(outliers.sum()), int((~outliers).sum())


def _kd_shares(norms: Tensor, deviations: Tensor, outliers: Tensor) -> dict[str, float]:
    errors = {"zero": norms.double(), "mean": deviations.double()}
    shares = {f"loss_{name}": _share(error.square(), outliers) for name, error in errors.items()}
    return shares | {f"gradient_{name}": _share(error, outliers) for name, error in errors.items()}


def _share(values: Tensor, mask: Tensor) -> float:
    return min(float(values[mask].sum()) / max(float(values.sum()), _TINY), 1.0)


def _defect_fields(
    measurements: PatchMeasurements, row: int, index: int, directions: dict[int, dict[str, Tensor]]
) -> dict:
    """Returns cosines of the outliers' mean direction to the singular directions of the blocks up to this one."""
    if index not in directions:
        return {"defect_cosine": None, "defect_source": None}
    mean = measurements.outlier_directions[row] / int(measurements.outliers[row].sum())
    candidates = [
        {"block": block, "part": part, "cosine": min(abs(float(mean @ direction)), 1.0)}
        for block, parts in directions.items()
        for part, direction in parts.items()
    ]
    own = {entry["part"]: entry["cosine"] for entry in candidates if entry["block"] == index}
    return {
        "defect_cosine": {"mlp": None, "attention": None} | own,
        "defect_source": max(candidates, key=lambda entry: entry["cosine"]),
    }


def _following_fields(
    outliers: Tensor, following: Tensor | None, attention: Tensor | None, note: str | None, num_prefix_tokens: int
) -> dict:
    names = ("persistence", "attention_share", "attention_uniform", "attention_note")
    fields = dict.fromkeys((*names, "class_attention_share", "class_attention_uniform"))
    if attention is None:
        return fields | {"attention_note": "refined features: the next block was not run on them"}
    if following is None:
        return fields | {"attention_note": "no block follows"}
    if not outliers.any():
        return fields | {"attention_note": "no outliers"}
    fields["persistence"] = int((outliers & following).sum()) / int(outliers.sum())
    for name, shares, others in (("", attention[0], num_prefix_tokens), ("class_", attention[1], 0)):
        available = ~shares.isnan()
        uniform = outliers.sum(1)[available].double() / (outliers.shape[1] + others)
        fields |= {f"{name}attention_share": _mean(shares[available]), f"{name}attention_uniform": _mean(uniform)}
    return fields | {"attention_note": note if fields["attention_share"] is None else None}
