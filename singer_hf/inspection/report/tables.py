"""Tables of a report: audits, adapters and comparisons as columns and rows of text."""

from collections.abc import Mapping, Sequence

from singer_hf.inspection.measure.audit_result import AuditResult, BlockAudit
from singer_hf.inspection.report.verdict import Verdict, has_artifacts, percent

MARKS = {"clean": "no artifacts", "few": "few artifacts", "strong": "artifacts"}
_WORDS = {"cka": "CKA", "iou": "IoU", "gram": "Gram", "auroc": "AUROC"}


def summary_table(
    results: Sequence[AuditResult], verdicts: Mapping[str, Verdict], comparisons: Mapping[str, Sequence[Mapping]]
) -> dict:
    """Returns one row per model, for the top of a page of several models.

    Args:
        results: One audit per model, the teacher first.
        verdicts: Name of the model -> verdict.
        comparisons: Title -> comparison with the teacher; the title begins with the model's name.
    """
    rows = []
    for result in results:
        affected = [block for block in result.blocks if has_artifacts(block)]
        worst = max(affected or result.blocks, key=lambda block: (block.kd_shares["loss_mean"], block.block))
        last = (comparisons.get(f"{result.name} compared with {results[0].name}") or [{}])[-1]
        cells = (
            *(result.name, MARKS[verdicts[result.name].level], _span(affected)),
            *(str(worst.block), percent(worst.outlier_share), number(worst.outlier_strength)),
            *(percent(worst.kd_shares["loss_mean"]), number(result.blocks[-1].p99_over_median)),
        )
        if comparisons:
            cells += (percent(last.get("inherited")), number(last.get("cka_others")))
        rows.append({"affected": bool(affected), "cells": cells})
    columns = ("model", "verdict", "in blocks", "worst block", "outliers", "outlier / median", "of MSE")
    columns += ("99 % / median, last block",)
    caption = "Outliers, outlier / median and share of the MSE in the worst block of each model, by share of the MSE."
    if comparisons:
        columns += ("inherited", "CKA without outliers")
        caption += f" Inherited: share of the outliers of {results[0].name} that are outliers in the model too."
    return {"columns": list(columns), "rows": rows, "caption": caption}


def _span(affected: Sequence[BlockAudit]) -> str:
    if not affected:
        return "-"
    first, last = affected[0].block, affected[-1].block
    return str(first) if first == last else f"{first} to {last} ({len(affected)})"


def model_section(result: AuditResult, verdict: Verdict) -> dict:
    """Returns the verdict, the notes, the facts and the tables of one model, for the template of the page.

    Args:
        result: The audit.
        verdict: Its verdict.
    """
    tables = [_block_table("Raw features, block by block", result.blocks)]
    if result.refined:
        tables.append(_block_table("Refined features (after the SiNGER adapter)", result.refined))
    if result.adapter:
        tables += [_adapter_table(result.adapter), _final_table(result.adapter["final"])]
    return {
        "name": result.name,
        "verdict": verdict,
        "mark": MARKS[verdict.level],
        "advice": verdict.advice.split("`"),  # every other part is code
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
        "outlier / median": lambda b: number(b.outlier_strength),
        "persist": lambda b: percent(b.persistence),
        "on border": lambda b: percent(b.border_share),
        "texture rank": lambda b: number(b.texture_rank),
        "same direction": lambda b: number(b.outlier_cosine),
        "to others": lambda b: number(b.cross_cosine),
        "of MSE": lambda b: percent(b.kd_shares["loss_mean"]),
        "of gradient": lambda b: percent(b.kd_shares["gradient_mean"]),
        "of attention": lambda b: percent(b.attention_share),
        "of class token": lambda b: percent(b.class_attention_share),
        "frequency": lambda b: number(b.frequency_outliers),
        "of others": lambda b: number(b.frequency_others),
        "former": lambda b: percent(b.former_share),
        "to outliers": lambda b: number(b.former_cosine),
        "others to outliers": lambda b: number(b.former_cosine_others),
    }
    if any(block.absolute_share is not None for block in blocks):
        columns["above absolute"] = lambda b: percent(b.absolute_share)
    rows = [
        {"affected": has_artifacts(block), "cells": [cell(block) for cell in columns.values()]} for block in blocks
    ]
    caption = (
        "99 % / median: mean over images; max / median: over all patches. Outlier / median: mean norm of the outliers "
        "over the median of their image. Persist: share of the outliers that are outliers after the next block too. "
        f"On border: {percent(blocks[0].border_expected)} by chance. Texture rank: 0 for the smoothest patch of an "
        "image, 1 for the roughest. Same direction: mean cosine of all pairs of outliers; to others: of "
        "an outlier and another patch. Of MSE, of gradient, of attention, of class token (its attention to patches): "
        "the share of the outliers. Frequency: relative distance of a token to its low-pass along the channels, mean "
        "over the outliers; of others: over all other patches. Former: share of the patches that were outliers in an "
        "earlier block, or before the adapter, and are none here; to outliers: mean cosine of their tokens to the "
        "direction that the outliers had last; others to outliers: of all other patches."
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
    rows = [{"affected": False, "cells": [cell(block) for cell in columns.values()]} for block in adapter["blocks"]]
    caption = (
        "Refinement: relative change of the patch tokens, of all and without outliers. Next output, next write: "
        "relative change of the next block's output and of what it adds to the tokens, without outliers. Leakage: "
        "relative change of what the next block adds if every token moves by 30 % of its norm within the adapter's "
        "directions; random leakage: within random directions. E_prob, E_safe: share of the energy of Φ_up in the "
        "directions with the largest and with the smallest singular values."
    )
    return {"title": "Adapter and null space", "columns": list(columns), "rows": rows, "caption": caption}


def _final_table(final: Mapping) -> dict:
    rows = [
        ("final patch features", percent(final["features"])),
        ("without outliers", percent(final["features_others"])),
    ]
    if final["logits"] is not None:
        rows += [
            ("logits", percent(final["logits"])),
            ("images with the same top class", percent(final["top1_agreement"])),
        ]
    return {
        "title": "Whole model with adapters",
        "columns": ["metric", "relative change"],
        "rows": [{"affected": False, "cells": row} for row in rows],
        "caption": "The model with active adapters, compared with the raw model.",
    }


def comparison_table(rows: Sequence[Mapping]) -> dict:
    """Returns columns and rows of one comparison.

    Args:
        rows: Result of :func:`singer_hf.inspection.measure.feature_comparison.compare_features`.
    """
    shares = {"iou", "inherited", "student_share", "teacher_share"}
    columns = {name: percent if name in shares else number for row in rows for name in row}
    labels = [" ".join(_WORDS.get(word, word) for word in name.split("_")) for name in columns]
    cells = [[_cell(row.get(name), show) for name, show in columns.items()] for row in rows]
    return {"columns": labels, "rows": [{"affected": False, "cells": row} for row in cells]}


def _cell(value: float | None, show: object) -> str:
    return str(value) if isinstance(value, int) else show(value)


def number(value: float | None) -> str:
    """Formats a number with three significant digits, "-" for None."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
