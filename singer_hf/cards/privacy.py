"""What a card must not tell: paths, the home folder, tokens, and settings of the machine or the account."""

import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PureWindowsPath
from typing import Any

# Settings that say something about the machine or the account, not about the model.
PRIVATE_SETTINGS = re.compile(
    r"(^|hub_|api_|auth_|access_)(token|key)$|(^|_)(dir|path|file)$|^hub_|^run_name$|^project$"
)
ACCESS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
ABSOLUTE_PATH = re.compile(r"""(?<![\w:/.~<-])(?:~|[A-Za-z]:)?(?:[\\/][^\s\\/"'`,;:<>()\[\]{}]+)+""")


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say something about the model; those that are None are left out."""
    return {name: value for name, value in settings.items() if value is not None and not PRIVATE_SETTINGS.search(name)}


def without_paths(value: Any) -> Any:
    """A value of any nesting in which every path, the home folder and access tokens are cut down."""
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
    """The last part of a path; other text with the paths, the home folder and access tokens in it cut down."""
    home = os.path.expanduser("~")  # "~" itself where there is none; "/" for accounts without a folder of their own
    text = ACCESS_TOKEN.sub("hf_...", text)
    if PureWindowsPath(text).anchor or text.startswith("~"):
        name = PureWindowsPath(text).name
        return "folder" if not name or name.startswith("~") or text.rstrip("/\\") == home else name
    text = text.replace(home, "~") if home != "/" else text
    return ABSOLUTE_PATH.sub(lambda found: _shorten_text(found[0]), text)
