"""The text of `--help`: flags in groups with one name each, and the defaults that hold."""

import json
import re
import textwrap
from argparse import Action
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from enum import Enum

_WIDTH, _COLUMN = 118, 33
_GENERAL = {
    "--config FILE": "YAML file of the same names, or a name that `singer-hf --list` lists; flags win over it. Also "
    "as the first word.",
    "--help_all": "All flags, with their whole texts. A flag without a default is not set.",
}


def help_text(command: str, about: str, groups: Mapping[str, Iterable[Action]], brief: Collection[str] = ()) -> str:
    """Returns the whole text.

    Args:
        command: Name of the command.
        about: What the command does, with examples; blank lines separate paragraphs.
        groups: Title -> flags.
        brief: Fields whose text is cut to its first sentence and those about the default.
    """
    lines = [f"usage: singer-hf {command} [FILE.yaml] [flags]", "", about.strip()]
    for title, actions in groups.items():
        rows = [row for action in actions for row in _rows(_name(action), _description(action, action.dest in brief))]
        lines += ["", f"{title}:", *rows]
    lines += ["", "General:", *(row for name, text in _GENERAL.items() for row in _rows(name, text))]
    return "\n".join(lines) + "\n"


def foreign_fields(dataclass_types: Iterable[type]) -> set[str]:
    """Returns the names of the fields that other libraries define."""
    foreign = set()
    for kind in dataclass_types:
        for item in fields(kind):
            owner = next(base for base in kind.__mro__ if item.name in vars(base).get("__annotations__", {}))
            if owner.__module__.partition(".")[0] in ("transformers", "peft"):
                foreign.add(item.name)
    return foreign


def _name(action: Action) -> str:
    return ", ".join(name for name in action.option_strings if "-" not in name[2:]) + " ..." * (action.nargs == "+")


def _rows(name: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, _WIDTH - _COLUMN, break_on_hyphens=False)
    head = f"  {name}"
    if len(head) < _COLUMN:
        return [f"{head:<{_COLUMN}}{lines[0]}", *(f"{'':<{_COLUMN}}{line}" for line in lines[1:])]
    return [head, *(f"{'':<{_COLUMN}}{line}" for line in lines)]


def _description(action: Action, brief: bool) -> str:
    text = " ".join((action.help or "").replace("%%", "%").split())
    if brief:
        first, *more = re.split(r"(?<=\.) ", text)
        text = " ".join([first, *(sentence for sentence in more if "default" in sentence.lower())])
    return f"{text} {_default(action)}".strip()


def _default(action: Action) -> str:
    if action.required:
        return "(required)"
    value = action.default.value if isinstance(action.default, Enum) else action.default
    if value in (None, "", []):
        return ""
    if isinstance(value, bool):
        return f"(default: {'on' if value else 'off'})"
    return f"(default: {json.dumps(value) if isinstance(value, dict | list) else value})"
