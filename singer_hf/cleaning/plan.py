"""Where the adapters of a cleaned teacher stand: behind the blocks in which its outliers begin, by an audit."""

import warnings
from dataclasses import dataclass, replace

from singer_hf.inspection.measure.audit_result import AuditResult, BlockAudit
from singer_hf.inspection.report.verdict import has_artifacts, judge, percent
from singer_hf.tuner.config import SingerConfig

# Outliers have grown where their share, or their norm over the median, is this many times that of the block before.
_GROWTH = 1.5


@dataclass(frozen=True)
class CleaningPlan:
    """What an audit of a teacher says about its cleaning.

    Attributes:
        audit: The audit of the teacher as it is.
        blocks: 0-based indices of the blocks behind which adapters stand, ascending; empty if there is nothing to
            clean.
        reasons: Sentences that say what was seen, which blocks and why.
    """

    audit: AuditResult
    blocks: tuple[int, ...]
    reasons: tuple[str, ...]

    def configure(self, config: SingerConfig | None) -> SingerConfig:
        """Returns a copy of the configuration with the blocks of the plan."""
        return replace(config or SingerConfig(), layers_to_transform=list(self.blocks))


def plan_cleaning(audit: AuditResult, config: SingerConfig | None = None) -> CleaningPlan:
    """Plans the cleaning of a teacher: adapters behind the blocks in which its outliers begin or grow.

    Behind that block attention has not read them yet, so that all later blocks see clean tokens.

    Args:
        audit: An audit of the teacher without adapters.
        config: The adapter's configuration; its ``layers_to_transform`` overrides the choice. A warning says if they
            lie behind the block in which the outliers begin.

    Raises:
        ValueError: If a block of the configuration does not exist.
    """
    affected = [block for block in audit.blocks if has_artifacts(block)]
    if not affected:
        sentence = judge(audit).headline + " There is nothing to clean: the teacher stays as it is."
        return CleaningPlan(audit, (), (sentence,))
    seen = f"{audit.name}: outliers begin after block {affected[0].block}: {_words(affected[0])}."
    if config is not None and config.layers_to_transform is not None:
        chosen = config.resolve_layers(len(audit.blocks))
        _warn_if_late(chosen[0], affected[0].block)
        return CleaningPlan(audit, tuple(chosen), (seen, f"Adapters behind {_listed(chosen)}, as configured."))
    chosen = _growing(audit)
    grown = [f"They grow again after block {b}: {_words(audit.blocks[b])}." for b in chosen[1:]]
    reason = f"Adapters behind {_listed(chosen)}, so that no later block reads outliers."
    return CleaningPlan(audit, tuple(chosen), (seen, *grown, reason))


def _growing(audit: AuditResult) -> list[int]:
    """The blocks with artifacts whose outliers are new, or more or longer than in the block before."""
    chosen = []
    for before, block in zip((None, *audit.blocks), audit.blocks, strict=False):
        if has_artifacts(block) and (before is None or not has_artifacts(before) or _has_grown(before, block)):
            chosen.append(block.block)
    return chosen


def _has_grown(before: BlockAudit, block: BlockAudit) -> bool:
    return (
        block.outlier_share > _GROWTH * before.outlier_share
        or block.outlier_strength > _GROWTH * before.outlier_strength
    )


def _words(block: BlockAudit) -> str:
    return (
        f"{percent(block.outlier_share)} of the patches, with a mean norm of {block.outlier_strength:.1f} times the "
        "median of their image"
    )


def _listed(blocks: list[int]) -> str:
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"


def _warn_if_late(first: int, begin: int) -> None:
    if first > begin:
        warnings.warn(
            f"`layers_to_transform` begins with block {first}, and the outliers begin after block {begin}: attention "
            f"in the blocks between has already read them; take {begin}, or leave it out",
            stacklevel=4,
        )
