"""An audit in words: does the model have artifacts, where, how strong are they, and what to do."""

from dataclasses import dataclass
from typing import Literal

from singer_hf.inspection.measure.audit_result import AuditResult, BlockAudit

# A block counts as hit from this share of outliers on: one patch in two thousand, one image of 196 patches in ten.
MIN_SHARE = 5e-4
# And only if they are this many times as long as the median patch, on average or 1 patch in 1000: bright skies and the
# like make first blocks write tokens of twice the median that are no artifacts.
MIN_STRENGTH, MIN_TAIL = 3.0, 4.0
# Above this share of the MSE in some block the artifacts steer a distillation.
STRONG_LOSS_SHARE = 0.1
_SMOOTH_RANK, _ROUGH_RANK = 0.35, 0.65
_SAME_DIRECTION, _FOLLOWS_WEIGHTS = 0.5, 0.5

Level = Literal["clean", "few", "strong"]


@dataclass(frozen=True)
class Verdict:
    """What to tell a reader first.

    Attributes:
        level: ``"clean"``; ``"few"``: outliers that hardly weigh in a loss; ``"strong"``: artifacts that do.
        headline: One sentence.
        sentences: The findings behind it.
        advice: What to do.
    """

    level: Level
    headline: str
    sentences: tuple[str, ...]
    advice: str


def is_hit(block: BlockAudit) -> bool:
    """Whether a block's outliers are artifacts: enough of them, and long enough."""
    if block.outlier_share < MIN_SHARE:
        return False
    tail = block.norm_quantiles["p99.9"] / max(block.norm_quantiles["p50"], 1e-12)
    return block.outlier_strength >= MIN_STRENGTH or tail >= MIN_TAIL


def judge(result: AuditResult) -> Verdict:
    """The verdict on the raw features of a model, and on the refined ones where it has an adapter."""
    hit = [block for block in result.blocks if is_hit(block)]
    if not hit:
        return _clean(result)
    level: Level = "strong" if max(b.kd_shares["loss_mean"] for b in hit) >= STRONG_LOSS_SHARE else "few"
    worst = max(hit, key=lambda block: block.kd_shares["loss_mean"])
    headline = {
        "strong": f"{result.name} has artifacts: high-norm patch tokens that would dominate a feature loss.",
        "few": f"{result.name} has a few high-norm patch tokens, too weak to steer a feature loss.",
    }[level]
    sentences = [_where(hit, result), _how_strong(worst), _which_patches(worst), _direction(worst), _cost(worst)]
    sentences.append(_attention(hit))
    sentences += _refinement(result)
    return Verdict(level, headline, tuple(filter(None, sentences)), _advice(level, hit, result))


def _clean(result: AuditResult) -> Verdict:
    worst = max(result.blocks, key=lambda block: block.outlier_share)
    most = "In no block is any patch an outlier."
    if worst.outlier_count:
        share = percent(worst.outlier_share)
        most = (
            f"The most outliers, {share} of the patches, are in block {worst.block}, on average "
            f"{worst.outlier_strength:.1f} times as long as the median patch: too few or too weak to be artifacts."
        )
    sentences = [
        most,
        f"After the last block the 99 % quantile of the patch norms is {result.blocks[-1].p99_over_median:.2f} times "
        f"the median and the largest {result.blocks[-1].max_over_median:.2f} times.",
    ]
    return Verdict(
        "clean",
        f"{result.name} shows no high-norm artifacts on these images.",
        (*sentences, *_refinement(result)),
        "Nothing needs cleaning: its features can be distilled as they are. The verdict holds for images like these.",
    )


def _where(hit: list[BlockAudit], result: AuditResult) -> str:
    first, last = hit[0].block, hit[-1].block
    blocks = f"in block {first} only" if len(hit) == 1 else f"in {len(hit)} of {len(result.blocks)} blocks"
    span = "" if len(hit) == 1 else f", from block {first} to block {last}"
    persistent = [block.persistence for block in hit if block.persistence is not None]
    kept = f" {percent(sum(persistent) / len(persistent))} of them are outliers in the next block too."
    return f"They appear {blocks}{span}.{kept if persistent else ''}"


def _how_strong(block: BlockAudit) -> str:
    return (
        f"In block {block.block}, the worst, {percent(block.outlier_share)} of the patches are outliers, on average "
        f"{block.outlier_strength:.1f} times as long as the median patch of their image; the longest is "
        f"{block.max_over_median:.1f} times the overall median. {percent(block.images_with_outliers)} of the images "
        "have some."
    )


def _which_patches(block: BlockAudit) -> str:
    parts = []
    if block.texture_rank < _SMOOTH_RANK:
        parts.append("they lie on smooth patches, where little is to be seen")
    elif block.texture_rank > _ROUGH_RANK:
        parts.append("they lie on textured patches")
    if block.border_share > 2 * block.border_expected:
        parts.append(f"{percent(block.border_share)} of them sit on the border of the image")
    counts = sorted((count for row in block.positions for count in row), reverse=True)
    few = counts[: max(len(counts) // 50, 1)]
    if sum(few) >= 0.5 * sum(counts) and sum(few) > 3 * len(few):
        places = len(list(filter(None, few)))
        share = percent(sum(few) / sum(counts))
        parts.append(f"{share} of them fall on {places} of the {len(counts)} places of the grid")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "They have no clear preference for place or texture."


def _direction(block: BlockAudit) -> str:
    if block.outlier_cosine is None or block.outlier_cosine < _SAME_DIRECTION:
        return ""
    text = f"They all point the same way (mean cosine {block.outlier_cosine:.2f}"
    source = block.defect_source
    if source and source["cosine"] >= _FOLLOWS_WEIGHTS:
        part = "MLP" if source["part"] == "mlp" else "attention"
        text += (
            f"), along the direction that the {part} of block {source['block']} writes most strongly "
            f"(cosine {source['cosine']:.2f}): their direction comes from the weights"
        )
        return f"{text}."
    return f"{text})."


def _cost(block: BlockAudit) -> str:
    shares = block.kd_shares
    return (
        f"Under a plain MSE these {percent(block.outlier_share)} of the patches would claim "
        f"{percent(shares['loss_mean'])} of the loss and {percent(shares['gradient_mean'])} of its gradient."
    )


def _attention(hit: list[BlockAudit]) -> str:
    readable = [block for block in hit if block.attention_share is not None]
    if not readable:
        return ""
    most = max(readable, key=lambda block: block.attention_share / block.attention_uniform)
    times = most.attention_share / most.attention_uniform
    return (
        f"The outliers of block {most.block} draw {percent(most.attention_share)} of the next block's attention, "
        f"{times:.1f} times what even attention would give them."
    )


def _refinement(result: AuditResult) -> list[str]:
    pairs = [(result.blocks[refined.block], refined) for refined in result.refined]
    return [
        f"Behind the adapter at block {raw.block} the outliers are {percent(refined.outlier_share)} of the patches "
        f"(raw: {percent(raw.outlier_share)}) and the 99 % quantile is {refined.p99_over_median:.2f} times the median "
        f"(raw: {raw.p99_over_median:.2f})."
        for raw, refined in pairs
    ]


def _advice(level: Level, hit: list[BlockAudit], result: AuditResult) -> str:
    if level == "few":
        return (
            "Distilling these features as they are is reasonable; if in doubt, compare one run with a SiNGER adapter."
        )
    layers = [block.block for block in hit if block.kd_shares["loss_mean"] >= STRONG_LOSS_SHARE]
    if result.refined:
        left = [block.block for block in result.refined if block.kd_shares["loss_mean"] >= STRONG_LOSS_SHARE]
        if left:
            return (
                f"The adapter does not remove them yet at block {_listed(left)}: train it on (a fresh one is not "
                "supposed to remove anything) or give the outlier loss more weight."
            )
        return "Distil from the refined features: there the outliers no longer weigh in the loss."
    return (
        f"Do not match the raw features of block {_listed(layers)} by MSE. Distil them through a SiNGER adapter, or "
        "choose blocks without outliers if there are any as deep."
    )


def _listed(blocks: list[int]) -> str:
    if len(blocks) > 3 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]} to {blocks[-1]}"
    return ", ".join(map(str, blocks[:-1])) + f" and {blocks[-1]}" if len(blocks) > 1 else str(blocks[0])


def percent(share: float | None) -> str:
    """A share in per cent with two significant digits: "0.042 %", "3.1 %", "68 %"; "-" for None."""
    if share is None:
        return "-"
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"
