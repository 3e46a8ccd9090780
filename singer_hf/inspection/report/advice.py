"""What to do about the artifacts that an audit has found, or has not."""

from singer_hf.baselines.cleanups.neighbor_mean import NeighborMeanMethod
from singer_hf.baselines.cleanups.register_method import TestTimeRegister
from singer_hf.baselines.fitnet import FitNet
from singer_hf.inspection.measure.audit_result import AuditResult, BlockAudit

# From this share of the MSE in some block on, the artifacts are strong.
STRONG_LOSS_SHARE = 0.1
# From this cosine on, outliers lie along a singular direction of the weights.
FOLLOWS_WEIGHTS = 0.5
_LIKE_THESE = "The verdict holds for images like these."


def advise(level: str, affected: list[BlockAudit], kept: list[BlockAudit], result: AuditResult) -> str:
    """Returns what to do, in one to three sentences.

    Args:
        level: ``"clean"``, ``"few"`` or ``"strong"``.
        affected: The blocks with artifacts.
        kept: The blocks in which patches keep the direction of artifacts with ordinary norms; with an adapter those
            behind it.
        result: The audit; its role, its adapter and the source of the outliers choose the advice.
    """
    if result.role == "student":
        return _for_student(level)
    if result.inline:
        return _for_cleaned(level, [*affected, *kept])
    if result.refined:
        return _for_adapter(level, kept, result)
    return _for_teacher(level, affected, result)


def _for_student(level: str) -> str:
    if level == "clean":
        return f"Use the student as it is: it has no artifacts. {_LIKE_THESE}"
    if level == "few":
        return "Use the student as it is; if its dense features matter, distil again through a SiNGER adapter."
    return (
        "Do not put an adapter on a student. Distil it again through a SiNGER adapter (`singer-hf distill --method "
        "singer`), or from a cleaned teacher (`singer-hf clean`)."
    )


def _for_cleaned(level: str, left: list[BlockAudit]) -> str:
    if level == "clean":
        return f"Use the cleaned model: no artifacts are left. {_LIKE_THESE}"
    blocks = listed(sorted({block.block for block in left}))
    return f"Artifacts are left at {blocks}: clean longer (`singer-hf clean --max_steps`) or with an adapter there."


def _for_adapter(level: str, turned: list[BlockAudit], result: AuditResult) -> str:
    left = [block.block for block in result.refined if block.kd_shares["loss_mean"] >= STRONG_LOSS_SHARE]
    if left:
        return (
            f"The adapter does not yet remove the outliers at {listed(left)}. An untrained adapter is not expected "
            "to; train it longer or increase the weight of the outlier loss."
        )
    if level == "clean":
        return f"No artifacts: distil plainly, the adapter is not needed. {_LIKE_THESE}"
    if turned:
        return (
            f"The adapter shortens the outliers at {listed([block.block for block in turned])} and leaves their "
            "direction; train it with `--outlier_loss neighbors`, which turns them too."
        )
    return "Distil from the refined features: their outliers have a small share of the loss."


def _for_teacher(level: str, affected: list[BlockAudit], result: AuditResult) -> str:
    if level == "clean":
        return f"No artifacts: distil plainly (`singer-hf distill --method {FitNet.name}`). {_LIKE_THESE}"
    if level == "few":
        return (
            f"Distil plainly (`singer-hf distill --method {FitNet.name}`); if in doubt, compare with one run "
            "through a SiNGER adapter. For dense features, `singer-hf clean` removes them."
        )
    layers = [block.block for block in affected if block.kd_shares["loss_mean"] >= STRONG_LOSS_SHARE]
    return (
        f"Do not match the raw features of {listed(layers)} by MSE. `singer-hf clean` trains an adapter that removes "
        f"the artifacts from the model itself; `singer-hf distill` refines them during a distillation. "
        f"{_untrained(affected)}"
    )


def _untrained(affected: list[BlockAudit]) -> str:
    """The clean-ups without training that fit: registers if an MLP writes the outliers, else neighbours' means."""
    text = f"Without training, `--method {NeighborMeanMethod.name}` replaces them by the mean of ordinary neighbours"
    worst = max(affected, key=lambda block: block.kd_shares["loss_mean"])
    source = worst.defect_source
    if source and source["part"] == "mlp" and source["cosine"] >= FOLLOWS_WEIGHTS:
        return (
            f"{text}, and `--method {TestTimeRegister.name}` moves them to a register, as the MLP of block "
            f"{source['block']} writes them."
        )
    return f"{text}."


def listed(blocks: list[int]) -> str:
    """Formats block indices: "block 3", "blocks 1, 2 and 5", "blocks 4 to 11"."""
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    if len(blocks) > 3 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"blocks {blocks[0]} to {blocks[-1]}"
    return f"blocks {', '.join(map(str, blocks[:-1]))} and {blocks[-1]}"
