"""Where the files of the package lie, and how a name becomes a path."""

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

# The kinds of files.
MODELS = "configs of models without weights"
TRAINED = "models with weights"
RUNS = "settings of distill"
COMPARISONS = "settings of compare"

_PLACES = {
    MODELS: ("configs/students/*.json", "configs/teachers/*.json"),
    TRAINED: ("demo/teacher",),
    RUNS: ("configs/runs/*.yaml",),
    COMPARISONS: ("configs/compare/*.yaml",),
}
# A folder called "teacher" says nothing on a command line.
_NAMES = {"teacher": "demo-teacher"}


def shipped_files(kind: str) -> dict[str, Path]:
    """Returns the path of every file or folder of a kind by its name.

    Args:
        kind: ``MODELS``, ``TRAINED``, ``RUNS`` or ``COMPARISONS``.
    """
    paths = sorted(path for place in _PLACES[kind] for path in _PACKAGE.glob(place))
    return {_NAMES.get(path.stem, path.stem): path for path in paths}


def find(name: str | Path, kind: str) -> str:
    """Returns the path of a file of the package; paths that exist and all other names are returned as they are.

    Args:
        name: A path, a name as listed by :func:`listing` (with or without the ending of its file), or a Hub id.
        kind: See :func:`shipped_files`.
    """
    if Path(name).exists():
        return str(name)
    return str(shipped_files(kind).get(_without_ending(str(name)), name))


def hint(name: str | Path, kind: str) -> str:
    """Returns the end of an error message: the nearest name of a kind, and where all of them are listed.

    Args:
        name: A name that was not found.
        kind: See :func:`shipped_files`.
    """
    near = difflib.get_close_matches(_without_ending(Path(name).name), shipped_files(kind), n=1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}`singer-hf --list` lists the names of the package"


def listing() -> str:
    """Returns the names of all kinds, as lines of text."""
    lines = []
    for kind in _PLACES:
        lines += [f"{kind}:", *(f"  {name}" for name in shipped_files(kind))]
    return "\n".join(lines)


def _without_ending(name: str) -> str:
    return name.removesuffix(".json").removesuffix(".yaml").removesuffix(".yml")
