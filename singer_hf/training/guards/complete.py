"""Which checkpoints can be resumed from."""

import json
import logging
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from singer_hf.training.guards.checkpoint_order import sort_checkpoints
from singer_hf.training.students.names import student_folders

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
# Present while the files of an earlier run are being removed for a new one.
REMOVAL_MARKER = "_removing_earlier_run"
# Configuration and weights of a distillation, and of an adapter that is trained alone.
_DISTILLATION = ("config.json", "model*.safetensors", "projectors/model.safetensors")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_PICKLED = ("optimizer*", "scheduler.pt", "rng_state*.pth")


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Returns the complete checkpoint of the latest step; later incomplete ones are named in the log."""
    if is_being_removed(output_dir):
        return None
    for folder in sort_checkpoints(output_dir=str(output_dir))[::-1]:
        problem = find_problem(Path(folder))
        if problem is None:
            return str(folder)
        logger.warning("skipping the incomplete checkpoint %s: %s", folder, problem)
    return None


def find_problem(folder: Path) -> str | None:
    """Returns why a run cannot be resumed from a checkpoint, or None. Its state file is written last."""
    config, *weights = _ADAPTER if (folder / _ADAPTER[0]).is_file() else _DISTILLATION
    try:
        parts = student_folders(folder)
        for file in (folder / STATE_FILE, *(part / config for part in parts)):
            json.loads(file.read_text(encoding="utf-8"))
        for file in folder.rglob("*.safetensors"):
            with safe_open(file, framework="pt"):
                pass
        for pattern in _PICKLED:
            for file in folder.glob(pattern):
                _check_end(file)
        for part in parts:
            _check_index(part)
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return f"{type(error).__name__}: {error}"
    if not all(any(part.glob(pattern)) for part in parts for pattern in weights):
        return "weights are missing"
    missing = [pattern for pattern in _PICKLED if not any(folder.glob(pattern))]
    return f"{' and '.join(missing)} missing" if missing else None


def is_written(folder: Path) -> bool:
    """Whether a checkpoint was written to its end; a killed run leaves one without a readable state file."""
    try:
        json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def is_being_removed(output_dir: str | Path) -> bool:
    """Whether the removal of an earlier run from a folder was begun and not ended."""
    return (Path(output_dir) / REMOVAL_MARKER).exists()


def _check_end(file: Path) -> None:
    """Reads the directory at the end of a file of `torch.save`, which a cut file lacks."""
    if file.is_file():
        try:
            zipfile.ZipFile(file).close()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{file.name} is cut or damaged ({error})") from error


def _check_index(folder: Path) -> None:
    """Checks that every part of a student in several files is there."""
    for index in folder.glob("model*.safetensors.index.json"):
        for part in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
            if not (folder / part).is_file():
                raise ValueError(f"{part} is missing")
