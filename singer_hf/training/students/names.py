"""The names of several students in the folder of their run, by which the folder is recognised."""

import json
from collections.abc import Iterable
from pathlib import Path

NAMES_FILE = "students.json"


def write_names(folder: Path, names: Iterable[str]) -> None:
    """Writes the names of several students; of the only one, whose name is empty, nothing.

    Args:
        folder: The run's folder or a checkpoint.
        names: The names.
    """
    named = [name for name in names if name]
    if named:
        (folder / NAMES_FILE).write_text(json.dumps({"students": named}, indent=2) + "\n", encoding="utf-8")


def student_folders(folder: Path) -> list[Path]:
    """The folders of the students in the folder of a run or in a checkpoint: its own, or those of several.

    Raises:
        ValueError: If the file with the names is damaged.
    """
    file = folder / NAMES_FILE
    if not file.is_file():
        return [folder]
    return [folder / name for name in json.loads(file.read_text(encoding="utf-8"))["students"]]
