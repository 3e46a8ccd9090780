"""What an output folder may hold at the start of a run, and the removal of checkpoints."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from singer_hf.training.guards.checkpoint_order import sort_checkpoints
from singer_hf.training.guards.complete import REMOVAL_MARKER, STATE_FILE, is_being_removed, is_written
from singer_hf.training.students.names import NAMES_FILE, student_folders

# Copies of checkpoints that are being uploaded; names with a leading underscore are never pushed.
PUSH_PREFIX = "_push-"
_STUDENT = ("model*.safetensors", "model*.safetensors.index.json")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "report.html", "audit.json", "figures")
_RUN_FILES = (
    *(*_STUDENT, *_ADAPTER, "singer", "projectors", "target_norms"),
    *("training_args.json", "*_figure.png", "non_finite_loss_rank*.json"),
)
_PUBLISHED = ("model*.safetensors", "adapter_model.safetensors")
# Also names that a folder may have without a student or an adapter in it.
_STUDENT_FILES = ("README.md", "config.json", "preprocessor_config.json")


def check_output_folder(output_dir: str | Path, resumed: bool = False) -> None:
    """Checks that a folder holds no other run. Checkpoints that were not written to their end do not count.

    Args:
        output_dir: The folder.
        resumed: Whether the run was to be resumed and there is no complete checkpoint; then only a student counts.

    Raises:
        ValueError: If there is a checkpoint or a student in it.
    """
    folder = Path(output_dir)
    if is_being_removed(folder):
        return
    checkpoints = [] if resumed else [path for path in folder.glob("checkpoint-*") if is_written(path)]
    published = [path for part in student_folders(folder) for pattern in _PUBLISHED for path in part.glob(pattern)]
    found = sorted(path.name for path in (*checkpoints, *published))
    if found:
        resume = "Resume that run (`resume_from_checkpoint=True`), use" if checkpoints else "Use"
        raise ValueError(
            f"`output_dir` must not hold another run, {str(output_dir)!r} has {', '.join(found)}. {resume} another "
            "folder, or set `overwrite_output_dir=True`"
        )


def check_sources(output_dir: str | Path, *names: str | None) -> None:
    """Checks that no model of the run was loaded from the folder that is written over.

    Args:
        output_dir: The folder.
        *names: Hub ids or folders of the models.

    Raises:
        ValueError: If one was.
    """
    folder = Path(output_dir).resolve()
    for name in filter(None, names):
        path = Path(name).resolve()
        if path.is_dir() and (path == folder or folder in path.parents):
            raise ValueError(
                f"`output_dir` must not hold the models of the run with `overwrite_output_dir=True`: {name!r} would "
                "be deleted; use another folder"
            )


def remove_earlier_run(output_dir: str | Path) -> None:
    """Removes checkpoints and students of an earlier run.

    A marker is set first and removed last. While it exists no checkpoint counts as complete, so that a run that is
    killed in between cannot be resumed from an old one.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return
    (folder / REMOVAL_MARKER).touch()
    for checkpoint in folder.glob("checkpoint-*"):
        remove_checkpoint(checkpoint)
    for part in (*student_folders(folder), folder):
        _remove_student(part)
    (folder / NAMES_FILE).unlink(missing_ok=True)
    (folder / REMOVAL_MARKER).unlink()


def _remove_student(folder: Path) -> None:
    published = [path for pattern in _PUBLISHED for path in folder.glob(pattern)]
    names = (*_STUDENT_FILES, *_RUN_FILES) if published else _RUN_FILES
    for path in [path for name in names for path in folder.glob(name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint, its state file first: at no time does half of it pass for a complete one."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)


def rotate_checkpoints(output_dir: str | Path, step: int, limit: int | None, best: Sequence[str] = ()) -> None:
    """Deletes the checkpoints of the earliest steps, whatever the clock says, so that ``limit`` of them stay.

    Those of later steps are neither counted nor deleted: an interrupted run may have left them.

    Args:
        output_dir: The run's folder.
        step: The current step.
        limit: Number of checkpoints that stay. None or 0: all.
        best: The best checkpoints, which stay beside the last one.
    """
    if not limit or limit < 0:
        return
    folders = [path for path in sort_checkpoints(output_dir=str(output_dir)) if _step(path) <= step]
    kept = {os.path.realpath(path) for path in (*folders[-1:], *best)}
    excess = len(folders) - max(limit, len(kept))
    for path in [path for path in folders if os.path.realpath(path) not in kept][: max(excess, 0)]:
        remove_checkpoint(Path(path))


def remove_push_copies(output_dir: str | Path) -> None:
    """Removes copies that a run left when it was killed during an upload."""
    for path in Path(output_dir).glob(f"{PUSH_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _step(checkpoint: str) -> int:
    return int(Path(checkpoint).name.rpartition("-")[2])
