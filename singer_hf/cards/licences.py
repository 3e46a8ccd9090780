"""The licence of what a run publishes: what the user says, else a warning that names the teacher's."""

import re
from pathlib import Path

from huggingface_hub import metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from yaml import YAMLError

CARD_FILE = "README.md"


def check_license(license: str | None) -> None:
    """Checks that a licence has the form of the Hub's identifiers; None is allowed.

    Args:
        license: The licence, e.g. ``"apache-2.0"``.

    Raises:
        ValueError: If it has not.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise ValueError(
            "`license` must be an identifier of the Hub such as 'apache-2.0', 'mit', 'cc-by-nc-4.0' or 'other', got "
            f"{license!r}"
        )


def license_of(model: str | None) -> str:
    """The licence on the card of a model, as far as the card lies on this machine; empty if it is not known.

    Args:
        model: Folder or Hub id of the model; a Hub id is looked for in the cache.
    """
    file = Path(model or "") / CARD_FILE
    if not model or not file.is_file():
        try:
            file = try_to_load_from_cache(model or "", CARD_FILE)
        except HFValidationError:
            return ""
    if not isinstance(file, str | Path):
        return ""
    try:
        metadata = metadata_load(file) or {}
    except (ValueError, YAMLError):
        return ""
    return metadata["license"] if isinstance(metadata.get("license"), str) else ""


def license_warning(license: str | None, teacher: str | None) -> str:
    """What to say of a card without a licence; empty for a card with one.

    Args:
        license: The licence that the user gave, if any.
        teacher: Folder or Hub id of the teacher.
    """
    if license:
        return ""
    known = license_of(teacher)
    end = f"; the teacher's card says {known!r}" if known else ""
    return f"the card states no licence, so nobody may use the model: set `license`, such as 'apache-2.0'{end}"
