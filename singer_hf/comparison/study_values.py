"""Checks of the values that a comparison's YAML file may hold, before anything is made of them."""

import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_MAPPING = "lines of the form `name: value`"
_KINDS = {str: "a text", int: "a whole number", tuple: "a list", dict: _MAPPING}
_YAML_TYPES = {tuple: (list, tuple)}


def check_fields(values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Checks that each value has the type of its field.

    Args:
        values: Name -> value.
        types: Name -> type, such as ``int | None`` for a number that may be missing.

    Raises:
        ValueError: If a value has another type.
    """
    for name, value in values.items():
        options = get_args(types[name]) if isinstance(types[name], UnionType) else (types[name],)
        kind = get_origin(options[0]) or options[0]
        if value is None and type(None) in options:
            continue
        if isinstance(value, bool) or not isinstance(value, _YAML_TYPES.get(kind, kind)):
            raise ValueError(f"`{name}` must be {_KINDS[kind]}, got {value!r}{_advice(value)}")


def check_mapping(name: str, value: Any) -> dict[str, Any]:
    """Returns a value as a dictionary, an empty one for None.

    Args:
        name: Its name in messages.
        value: The value.

    Raises:
        ValueError: If it is neither a mapping nor None.
    """
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"`{name}` must be {_MAPPING}, got {value!r}")
    return dict(value or {})


def check_seeds(seeds: Iterable[Any]) -> None:
    """Checks that all seeds are different whole numbers and that there are some.

    Raises:
        ValueError: If not.
    """
    seeds = list(seeds)
    is_number = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if not seeds or not is_number or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must be different whole numbers, got {seeds}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks that each setting has a value, and no number was parsed as text, as YAML does with 1e-3.

    Raises:
        ValueError: If there is such a setting.
    """
    for name, value in settings.items():
        if value is None:
            raise ValueError(f"`{name}` must have a value, got None{_advice(value)}")
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            raise ValueError(f"`{name}` is the text {value!r} to YAML; write it with a point, as in 1.0e-3")


def _advice(value: Any) -> str:
    return "; leave the name out to use the default" if value is None else ""
