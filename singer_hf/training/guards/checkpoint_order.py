"""The checkpoints of a run in the order of their steps."""

from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def sort_checkpoints(output_dir: str | Path) -> list[str]:
    """Returns the checkpoints in a folder, those of the earliest steps first, whatever the clock says."""
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    steps = {str(path): path.name.rpartition("-")[2] for path in folders}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))
