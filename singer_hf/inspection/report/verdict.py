"""Verdict of an audit in words: whether the model has artifacts, where, how strong they are, and what to do."""

from dataclasses import dataclass
from typing import Literal

from singer_hf.artifacts.outliers import MIN_SHARE, MIN_STRENGTH
from singer_hf.inspection.measure.audit_result import AuditResult, BlockAudit

# Smallest ratio of norm to median norm at 1 patch in 1000 in a block with artifacts whose mean ratio is smaller.
MIN_TAIL = 4.0
# From this share of the MSE in some block on, the artifacts are strong.
STRONG_LOSS_SHARE = 0.1
_SMOOTH_RANK, _ROUGH_RANK = 0.35, 0.65
_SAME_DIRECTION, _FOLLOWS_WEIGHTS = 0.5, 0.5

Level = Literal["clean", "few", "strong"]


@dataclass(frozen=True)
class Verdict:
    """Verdict on one model.

    Attributes:
        level: ``"clean"``: no artifacts; ``"few"``: artifacts with a small share of a loss; ``"strong"``: artifacts
            with a large share.
        headline: The verdict in one sentence.
        sentences: The findings on which it is based.
        advice: What to do.
    """

    level: Level
    headline: str
    sentences: tuple[str, ...]
    advice: str


def has_artifacts(block: BlockAudit) -> bool:
    """Returns whether a block has artifacts: enough outliers with large enough norms."""
    if block.outlier_share < MIN_SHARE:
        return False
    tail = block.norm_quantiles["p99.9"] / max(block.norm_quantiles["p50"], 1e-12)
    return block.outlier_strength >= MIN_STRENGTH or tail >= MIN_TAIL


def judge(result: AuditResult) -> Verdict:
    """Returns the verdict on the raw features of a model, and on the refined features if it has an adapter."""
    affected = [block for block in result.blocks if has_artifacts(block)]
    if not affected:
        return _clean(result)
    level: Level = "strong" if max(b.kd_shares["loss_mean"] for b in affected) >= STRONG_LOSS_SHARE else "few"
    worst = max(affected, key=lambda block: block.kd_shares["loss_mean"])
    headline = {
        "strong": f"{result.name} has artifacts: high-norm patch tokens that would dominate a feature loss.",
        "few": f"{result.name} has a few high-norm patch tokens, too weak to dominate a feature loss.",
    }[level]
    sentences = [_where(affected, result), _how_strong(worst), _which_patches(worst), _direction(worst), _cost(worst)]
    sentences.append(_attention(affected))
    sentences += _refinement(result)
    return Verdict(level, headline, tuple(filter(None, sentences)), _advice(level, affected, result))


def _clean(result: AuditResult) -> Verdict:
    worst = max(result.blocks, key=lambda block: block.outlier_share)
    most = "No block has outliers."
    if worst.outlier_count:
        share = percent(worst.outlier_share)
        most = (
            f"Block {worst.block} has the most outliers: {share} of the patches, with a mean norm of "
            f"{worst.outlier_strength:.1f} times the median of their image. They are too few or too weak to be "
            "artifacts."
        )
    sentences = [
        most,
        f"After the last block, the 99 % quantile of an image's patch norms is on average "
        f"{result.blocks[-1].p99_over_median:.2f} times their median; the largest norm is "
        f"{result.blocks[-1].max_over_median:.2f} times the median of all patches.",
    ]
    return Verdict(
        "clean",
        f"{result.name} shows no high-norm artifacts on these images.",
        (*sentences, *_refinement(result)),
        "No clean-up is needed: the raw features can be distilled. The verdict holds for images like these.",
    )


def _where(affected: list[BlockAudit], result: AuditResult) -> str:
    first, last = affected[0].block, affected[-1].block
    blocks = f"in block {first} only" if len(affected) == 1 else f"in {len(affected)} of {len(result.blocks)} blocks"
    span = "" if len(affected) == 1 else f", from block {first} to block {last}"
    persistent = [block.persistence for block in affected if block.persistence is not None]
    text = f"They appear {blocks}{span}."
    if persistent:
        text += f" {percent(sum(persistent) / len(persistent))} of them are outliers after the next block too."
    return text


def _how_strong(block: BlockAudit) -> str:
    return (
        f"They are strongest in block {block.block}: {percent(block.outlier_share)} of the patches are outliers, with "
        f"a mean norm of {block.outlier_strength:.1f} times the median of their image. The largest norm is "
        f"{block.max_over_median:.1f} times the median of all patches. {percent(block.images_with_outliers)} of the "
        "images have outliers."
    )


def _which_patches(block: BlockAudit) -> str:
    parts = []
    if block.texture_rank < _SMOOTH_RANK:
        parts.append("they lie on smooth patches with little texture")
    elif block.texture_rank > _ROUGH_RANK:
        parts.append("they lie on textured patches")
    if block.border_share > 2 * block.border_expected:
        parts.append(f"{percent(block.border_share)} of them lie on the border of the image")
    counts = sorted((count for row in block.positions for count in row), reverse=True)
    few = counts[: max(len(counts) // 50, 1)]
    if sum(few) >= 0.5 * sum(counts) and sum(few) > 3 * len(few):
        places = len(list(filter(None, few)))
        share = percent(sum(few) / sum(counts))
        parts.append(f"{share} of them lie at {places} of the {len(counts)} grid positions")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "They show no clear preference for a position or a texture."


def _direction(block: BlockAudit) -> str:
    if block.outlier_cosine is None or block.outlier_cosine < _SAME_DIRECTION:
        return ""
    text = f"They share one direction (mean cosine {block.outlier_cosine:.2f}"
    source = block.defect_source
    if source and source["cosine"] >= _FOLLOWS_WEIGHTS:
        part = "MLP" if source["part"] == "mlp" else "attention"
        text += (
            f"), close to the leading singular direction of the {part} of block {source['block']} "
            f"(cosine {source['cosine']:.2f}), so it is determined by the weights"
        )
        return f"{text}."
    return f"{text})."


def _cost(block: BlockAudit) -> str:
    shares = block.kd_shares
    return (
        f"These {percent(block.outlier_share)} of the patches would cause {percent(shares['loss_mean'])} of a plain "
        f"MSE loss and {percent(shares['gradient_mean'])} of its gradient."
    )


def _attention(affected: list[BlockAudit]) -> str:
    available = [block for block in affected if block.attention_share is not None]
    if not available:
        return ""
    most = max(available, key=lambda block: block.attention_share / block.attention_uniform)
    times = most.attention_share / most.attention_uniform
    return (
        f"The outliers of block {most.block} receive {percent(most.attention_share)} of the next block's attention, "
        f"{times:.1f} times their share under uniform attention."
    )


def _refinement(result: AuditResult) -> list[str]:
    pairs = [(result.blocks[refined.block], refined) for refined in result.refined]
    return [
        f"After the adapter at block {raw.block}, {percent(refined.outlier_share)} of the patches are outliers "
        f"(raw: {percent(raw.outlier_share)}), and the 99 % quantile of an image's patch norms is on average "
        f"{refined.p99_over_median:.2f} times their median (raw: {raw.p99_over_median:.2f})."
        for raw, refined in pairs
    ]


def _advice(level: Level, affected: list[BlockAudit], result: AuditResult) -> str:
    if level == "few":
        return "The raw features can be distilled; if in doubt, compare with one run through a SiNGER adapter."
    layers = [block.block for block in affected if block.kd_shares["loss_mean"] >= STRONG_LOSS_SHARE]
    if result.refined:
        left = [block.block for block in result.refined if block.kd_shares["loss_mean"] >= STRONG_LOSS_SHARE]
        if left:
            return (
                f"The adapter does not yet remove the outliers at {_listed(left)}. An untrained adapter is not "
                "expected to; train it longer or increase the weight of the outlier loss."
            )
        return "Distil from the refined features: their outliers have a small share of the loss."
    return (
        f"Do not match the raw features of {_listed(layers)} by MSE. Distil through a SiNGER adapter, or choose "
        "blocks of similar depth without outliers."
    )


def _listed(blocks: list[int]) -> str:
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    if len(blocks) > 3 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"blocks {blocks[0]} to {blocks[-1]}"
    return f"blocks {', '.join(map(str, blocks[:-1]))} and {blocks[-1]}"


def percent(share: float | None) -> str:
    """Formats a share in per cent with two significant digits: "0.042 %", "3.1 %", "68 %"; "-" for None."""
    if share is None:
        return "-"
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"
