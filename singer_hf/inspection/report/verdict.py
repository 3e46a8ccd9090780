"""Verdict of an audit in words: whether the model has artifacts, where, how strong they are, and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from singer_hf.artifacts.outliers import MIN_SHARE, MIN_STRENGTH
from singer_hf.inspection.measure.audit_result import AuditResult, BlockAudit
from singer_hf.inspection.report.advice import FOLLOWS_WEIGHTS, STRONG_LOSS_SHARE, advise

# Smallest ratio of norm to median norm at 1 patch in 1000 in a block with artifacts whose mean ratio is smaller.
MIN_TAIL = 4.0
_SMOOTH_RANK, _ROUGH_RANK = 0.35, 0.65
_SAME_DIRECTION = 0.5
# Tokens keep the direction of artifacts if their cosine to it exceeds that of ordinary patches by this.
_DIRECTION_GAP = 0.25

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

    def __str__(self) -> str:
        found = (f"- {sentence}" for sentence in self.sentences)
        return "\n".join([self.headline, *found, f"What to do: {self.advice}"])


def has_artifacts(block: BlockAudit) -> bool:
    """Returns whether a block has artifacts: enough outliers with large enough norms."""
    if block.outlier_share < MIN_SHARE:
        return False
    tail = block.norm_quantiles["p99.9"] / max(block.norm_quantiles["p50"], 1e-12)
    return block.outlier_strength >= MIN_STRENGTH or tail >= MIN_TAIL


def keeps_direction(block: BlockAudit) -> bool:
    """Returns whether patches with ordinary norms still point the way of the outliers that they were before."""
    if not block.former_share or block.former_share < MIN_SHARE or block.former_cosine is None:
        return False
    gap = block.former_cosine - block.former_cosine_others
    return block.former_cosine >= _SAME_DIRECTION and gap >= _DIRECTION_GAP


def judge(result: AuditResult, comparison: Sequence[Mapping] | None = None) -> Verdict:
    """Returns the verdict on the raw features of a model, and on the refined features if it has an adapter.

    Args:
        result: The audit.
        comparison: The model compared with its teacher, see
            :func:`singer_hf.inspection.measure.feature_comparison.compare_features`.
    """
    affected = [block for block in result.blocks if has_artifacts(block)]
    # Without artifacts by norm the direction of a few long tokens is that of their content, such as a bright sky.
    kept = [block for block in result.blocks if affected and keeps_direction(block)]
    level = _level(affected)
    sentences = [*_by_norm(affected, result), _by_direction(kept), *_refinement(result), _inherited(comparison)]
    headline = {
        "strong": f"{result.name} has artifacts: high-norm patch tokens that would dominate a feature loss.",
        "few": f"{result.name} has a few high-norm patch tokens, too weak to dominate a feature loss.",
        "clean": f"{result.name} shows no high-norm artifacts on these images.",
    }[level]
    turned = [block for block in result.refined if affected and keeps_direction(block)] if result.refined else kept
    return Verdict(level, headline, tuple(filter(None, sentences)), advise(level, affected, turned, result))


def _level(affected: list[BlockAudit]) -> Level:
    if not affected:
        return "clean"
    return "strong" if max(b.kd_shares["loss_mean"] for b in affected) >= STRONG_LOSS_SHARE else "few"


def _by_norm(affected: list[BlockAudit], result: AuditResult) -> list[str]:
    if not affected:
        return _no_artifacts(result)
    worst = max(affected, key=lambda block: block.kd_shares["loss_mean"])
    found = [_where(affected, result), _how_strong(worst), _which_patches(worst), _direction(worst), _cost(worst)]
    return [*found, _attention(affected)]


def _no_artifacts(result: AuditResult) -> list[str]:
    worst = max(result.blocks, key=lambda block: block.outlier_share)
    most = "No block has outliers."
    if worst.outlier_count:
        share = percent(worst.outlier_share)
        most = (
            f"Block {worst.block} has the most outliers: {share} of the patches, with a mean norm of "
            f"{worst.outlier_strength:.1f} times the median of their image. They are too few or too weak to be "
            "artifacts."
        )
    last = result.blocks[-1]
    return [
        most,
        f"After the last block, the 99 % quantile of an image's patch norms is on average "
        f"{last.p99_over_median:.2f} times their median; the largest norm is {last.max_over_median:.2f} times the "
        "median of all patches.",
    ]


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
    if source and source["cosine"] >= FOLLOWS_WEIGHTS:
        part = "MLP" if source["part"] == "mlp" else "attention"
        text += (
            f"), close to the leading singular direction of the {part} of block {source['block']} "
            f"(cosine {source['cosine']:.2f}), so it is determined by the weights"
        )
        return f"{text}."
    return f"{text})."


def _by_direction(kept: list[BlockAudit]) -> str:
    """The artifacts that no norm shows: patches that were outliers before and still point the same way."""
    if not kept:
        return ""
    most = max(kept, key=lambda block: block.former_share)
    return (
        f"Directions show more than norms: after block {most.block}, {percent(most.former_share)} of the patches have "
        "ordinary norms, but were outliers before and still point the same way (mean cosine to the outliers "
        f"{most.former_cosine:.2f}, other patches {most.former_cosine_others:.2f})."
    )


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
    sentences = []
    for refined in result.refined:
        raw = result.blocks[refined.block]
        text = (
            f"After the adapter at block {raw.block}, {percent(refined.outlier_share)} of the patches are outliers "
            f"(raw: {percent(raw.outlier_share)}), and the 99 % quantile of an image's patch norms is on average "
            f"{refined.p99_over_median:.2f} times their median (raw: {raw.p99_over_median:.2f})."
        )
        if keeps_direction(refined):
            text += (
                f" It shortens {percent(refined.former_share)} of the patches without turning them: their mean cosine "
                f"to the raw outliers is {refined.former_cosine:.2f} (other patches "
                f"{refined.former_cosine_others:.2f})."
            )
        sentences.append(text)
    return sentences


def _inherited(comparison: Sequence[Mapping] | None) -> str:
    """What the model has taken over at the places of the teacher's outliers, by norm and by direction.

    The cosines are not judged: artifacts prefer plain content, which is alike in a clean model as well.
    """
    last = comparison[-1] if comparison else {}
    if last.get("inherited") is None:
        return ""
    text = f"{percent(last['inherited'])} of the teacher's outliers are outliers here too"
    artifact, other = last.get("artifact_alignment"), last.get("other_alignment")
    if artifact is None or other is None:
        return f"{text}."
    return (
        f"{text}. By direction: at the places of these outliers its tokens have a mean cosine of {artifact:.2f} among "
        f"each other and of {other:.2f} to other patches; smooth patches are alike without artifacts, too."
    )


def percent(share: float | None) -> str:
    """Formats a share in per cent with two significant digits: "0.042 %", "3.1 %", "68 %"; "-" for None."""
    if share is None:
        return "-"
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"
