"""The names of flags: what a mistyped one may have meant. Imports nothing that takes time."""

import difflib
import re
from collections.abc import Iterable

_LISTED = re.compile(r"^  (--\w+(?:, --\w+)*)", re.MULTILINE)


def unknown_flag(name: str, known: Iterable[str]) -> str:
    """Returns what is said of a flag that there is not, with the nearest ones.

    Args:
        name: The flag as it was given.
        known: The flags that there are.
    """
    wanted = f"--{name.lstrip('-').replace('-', '_')}"
    known = [flag for flag in known if flag.startswith("--") and "-" not in flag[2:]]
    near = [flag for flag in known if flag.startswith(wanted)] or difflib.get_close_matches(wanted, known, 1, 0.75)
    if not near:  # a typo in an abbreviation
        near = [flag for flag in known if difflib.get_close_matches(wanted, [flag[: len(wanted)]], cutoff=0.8)]
    end = f"did you mean `{'` or `'.join(near[:3])}`?" if near else "see --help"
    return f"unknown flag `{name}`; {end}"


def listed_flags(text: str) -> list[str]:
    """Returns the flags that the text of `--help_all` lists, aliases included."""
    return [name for names in _LISTED.findall(text) for name in names.split(", ")]


def find_unknown(given: Iterable[str], known: Iterable[str]) -> str | None:
    """Returns the first flag of a command line that there is not, or None.

    Args:
        given: The command line.
        known: The flags that there are; `--no_x` is one where `--x` is.
    """
    known = {*known, *(f"--no_{flag[2:]}" for flag in known)}
    names = [word.partition("=")[0] for word in given if word.startswith("--")]
    return next((name for name in names if f"--{name[2:].replace('-', '_')}" not in known), None)
