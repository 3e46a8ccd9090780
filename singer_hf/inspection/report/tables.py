"""The tables of a report: audits, adapters and comparisons as columns and rows of text."""

from collections.abc import Mapping, Sequence

from singer_hf.inspection.measure.audit_result import AuditResult, BlockAudit
from singer_hf.inspection.report.verdict import is_hit, judge, percent


def model_section(result: AuditResult) -> dict:
    """Everything the page says about one model."""
    tables = [_block_table("Raw features, block by block", result.blocks)]
    if result.refined:
        tables.append(_block_table("Refined features (behind the SiNGER adapter)", result.refined))
    if result.adapter:
        tables += [_adapter_table(result.adapter), _final_table(result.adapter["final"])]
    return {
        "name": result.name,
        "verdict": judge(result),
        "notes": result.notes,
        "tables": tables,
        "facts": [
            ("architecture", f"{result.architecture}, {len(result.blocks)} blocks, width {result.hidden_size}"),
            ("images", f"{result.num_images} of {result.image_size[0]} x {result.image_size[1]} pixels"),
            ("tokens", f"{result.grid[0]} x {result.grid[1]} patches, {result.num_prefix_tokens} prefix"),
        ],
    }


def _block_table(title: str, blocks: Sequence[BlockAudit]) -> dict:
    columns = {
        "block": lambda b: str(b.block),
        "median norm": lambda b: number(b.norm_quantiles["p50"]),
        "99 % / median": lambda b: number(b.p99_over_median),
        "max / median": lambda b: number(b.max_over_median),
        "outliers": lambda b: percent(b.outlier_share),
        "times median": lambda b: number(b.outlier_strength),
        "in next block": lambda b: percent(b.persistence),
        "on border": lambda b: percent(b.border_share),
        "texture rank": lambda b: number(b.texture_rank),
        "same direction": lambda b: number(b.outlier_cosine),
        "of MSE": lambda b: percent(b.kd_shares["loss_mean"]),
        "of gradient": lambda b: percent(b.kd_shares["gradient_mean"]),
        "of attention": lambda b: percent(b.attention_share),
    }
    if any(block.absolute_share is not None for block in blocks):
        columns["above absolute"] = lambda b: percent(b.absolute_share)
    rows = [{"hit": is_hit(block), "cells": [cell(block) for cell in columns.values()]} for block in blocks]
    caption = (
        f"By chance {percent(blocks[0].border_expected)} would lie on the border. Texture rank: 0 smoothest patch of "
        "its image, 1 roughest. Same direction: mean cosine of all pairs of outliers."
    )
    return {"title": title, "columns": list(columns), "rows": rows, "caption": caption}


def _adapter_table(adapter: Mapping) -> dict:
    columns = {
        "block": lambda b: str(b["block"]),
        "rank": lambda b: str(b["r"]),
        "refinement": lambda b: percent(b["refinement"]),
        "without outliers": lambda b: percent(b["refinement_others"]),
        "next output": lambda b: percent(b["next_output_others"]),
        "next write": lambda b: percent(b["next_write_others"]),
        "leakage": lambda b: number(b["leakage"]),
        "random leakage": lambda b: number(b["leakage_random"]),
        "E_prob": lambda b: number((b["up"] or {}).get("e_prob")),
        "E_safe": lambda b: number((b["up"] or {}).get("e_safe")),
    }
    rows = [{"hit": False, "cells": [cell(block) for cell in columns.values()]} for block in adapter["blocks"]]
    caption = (
        "Refinement: how far the features move, relative to their length; outliers outweigh the rest, so once without "
        "them. Next output, next write: how much the next block's tokens and its own contribution change at the "
        "patches that are no outliers. Leakage: change of that contribution for moves of 30 % inside the adapter's "
        "directions, beside random directions. E_prob, E_safe: share of Φ_up in the most and the least read ones."
    )
    return {"title": "Adapter and null space", "columns": list(columns), "rows": rows, "caption": caption}


def _final_table(final: Mapping) -> dict:
    rows = [
        ("final patch features", percent(final["features"])),
        ("without outliers", percent(final["features_others"])),
    ]
    if final["logits"] is not None:
        rows += [("logits", percent(final["logits"])), ("same top class", percent(final["top1_agreement"]))]
    return {
        "title": "With the refined features flowing on",
        "columns": ["measure", "relative change"],
        "rows": [{"hit": False, "cells": row} for row in rows],
        "caption": "The whole model with its adapters inline beside the raw model.",
    }


def comparison_table(rows: Sequence[Mapping]) -> dict:
    """Columns and rows of what :func:`singer_hf.inspection.measure.feature_comparison.compare_features` gave."""
    shares = {"iou", "inherited", "student_share", "teacher_share"}
    columns = {name: percent if name in shares else number for row in rows for name in row}
    labels = [name.replace("_", " ").replace("cka", "CKA").replace("iou", "IoU") for name in columns]
    cells = [[_cell(row.get(name), show) for name, show in columns.items()] for row in rows]
    return {"columns": labels, "rows": [{"hit": False, "cells": row} for row in cells]}


def _cell(value: float | None, show: object) -> str:
    return str(value) if isinstance(value, int) else show(value)


def number(value: float | None) -> str:
    """A number with three significant digits, "-" for None."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
