"""The folder of a cell: the settings it was started with, and its result."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from singer_hf.comparison.study import Study

_RESULT, _SETTINGS = "result.json", "settings.json"
# What an unfinished cell leaves in its folder.
_WORK = ("student", "work")
# Fields of a study that change nothing about a single cell.
_NOT_OF_A_CELL = ("methods", "output_dir", "seeds", "baseline", "grid", "num_cost_steps")


@dataclass(frozen=True)
class CellFolder:
    """A folder that belongs to one cell with its settings.

    Attributes:
        path: The folder.
        digest: Digest of all settings that the result depends on, saved with the result.
        settings: Name of each setting -> its value as text, noted at the start of the cell.
    """

    path: Path
    digest: str
    settings: dict[str, str]

    def read_result(self) -> dict[str, Any] | None:
        """Returns the finished result; None if the cell is not finished.

        Raises:
            ValueError: If the folder holds a cell, finished or not, with other settings.
        """
        noted, result = _read(self.path / _SETTINGS), _read(self.path / _RESULT)
        if noted is None and result is None and any((self.path / name).exists() for name in _WORK):
            raise self._other_settings(f"or by another version, there is no {_SETTINGS}")
        if noted is not None and noted != self.settings:
            raise self._other_settings(_differences(noted, self.settings))
        if result is not None and result["settings"] != self.digest:
            raise self._other_settings(f"digest {result['settings']}, now {self.digest}")
        return result

    def write_settings(self) -> None:
        """Notes the settings, before anything else is written to the folder."""
        _write(self.path / _SETTINGS, self.settings)

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes a result whole or not at all."""
        _write(self.path / _RESULT, result)

    def _other_settings(self, what: str) -> ValueError:
        return ValueError(
            f"{str(self.path)!r} was made with other settings of the comparison ({what}); take another `output_dir`, "
            "or delete that folder to have it made again"
        )


def cell_folder(study: Study, method: str, seed: int) -> CellFolder:
    """Returns the folder of a cell.

    Args:
        study: The comparison.
        method: Name of the method.
        seed: The seed.
    """
    entry, shared = study.methods[method], _shared(study)
    own = asdict(entry.method) | dict(entry.training) | {"teacher_name_or_path": entry.teacher_name_or_path}
    settings = {f"{method}.{name}": value for name, value in own.items()} | {f"{method}.method": entry.method.name}
    settings |= shared | {"seed": seed, "digest of student_config": _digest_of_config(study)}
    parts = entry.method.name, asdict(entry), shared, seed
    if adapter := own.get("adapter_name_or_path"):
        settings["digest of the adapter"] = _digest_of_adapter(adapter)
        parts += (settings["digest of the adapter"],)
    digest = _digest(parts)
    return CellFolder(Path(study.output_dir) / "cells" / method / f"seed{seed}", digest, _as_text(settings))


def reference_folder(study: Study, name: str, model: str) -> CellFolder:
    """Returns the folder of a measured teacher.

    Args:
        study: The comparison.
        name: Name in tables.
        model: Folder or Hub id of the teacher.
    """
    shared, path = _shared(study), Path(study.output_dir) / "references" / name.replace(" ", "_")
    return CellFolder(path, _digest((model, shared)), _as_text(shared | {"model": model}))


def _differences(old: dict[str, str], new: dict[str, str]) -> str:
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return "; ".join(f"{name}: {old.get(name, 'not set')}, now {new.get(name, 'not set')}" for name in names)


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(file)


def _shared(study: Study) -> dict[str, Any]:
    return {name: value for name, value in asdict(study).items() if name not in _NOT_OF_A_CELL}


def _digest_of_config(study: Study) -> str | None:
    """None for a config that is no local file."""
    file = Path(study.student_config)
    return _digest((file.read_text(encoding="utf-8"),)) if file.is_file() else None


def _digest_of_adapter(name: str) -> str | None:
    """None for an adapter that is no local folder."""
    file = Path(name, "adapter_model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


def _digest(settings: tuple) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def _as_text(settings: dict[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in settings.items()}
