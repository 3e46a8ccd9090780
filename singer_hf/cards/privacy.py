"""Removes private information from the content of a card: paths, the home folder and access tokens."""

import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PureWindowsPath
from typing import Any

ACCESS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
ABSOLUTE_PATH = re.compile(r"""(?<![\w:/.~<-])(?:~|[A-Za-z]:)?(?:[\\/][^\s\\/"'`,;:<>()\[\]{}]+)+""")


def without_paths(value: Any) -> Any:
    """A copy of a value of any nesting in which paths keep their last part and access tokens are masked.

    Paths and enum members become strings; tuples and sets become lists.
    """
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [without_paths(entry) for entry in value]
    if isinstance(value, Path):
        return without_paths(str(value.absolute()))
    if isinstance(value, Enum):
        return without_paths(value.value)
    return _shorten_text(value) if isinstance(value, str) else value


def _shorten_text(text: str) -> str:
    """The last part of a path; of other text, the same for every path, home folder and access token in it."""
    home = os.path.expanduser("~")  # "~" itself where there is none; "/" for accounts without a folder of their own
    text = ACCESS_TOKEN.sub("hf_...", text)
    if PureWindowsPath(text).anchor or text.startswith("~"):
        name = PureWindowsPath(text).name
        return "folder" if not name or name.startswith("~") or text.rstrip("/\\") == home else name
    text = text.replace(home, "~") if home != "/" else text
    return ABSOLUTE_PATH.sub(lambda found: _shorten_text(found[0]), text)
