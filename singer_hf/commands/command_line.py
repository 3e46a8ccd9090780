"""What all commands share: flags or a YAML file, and one line for what a user got wrong."""

import json
import logging
import re
import sys
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from datasets.exceptions import DatasetsError
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from singer_hf.commands.flag_names import unknown_flag
from singer_hf.commands.help_text import foreign_fields, help_text
from singer_hf.configs import find, hint
from singer_hf.data.yaml_file import load_yaml

logger = logging.getLogger(__name__)

# What a user can get wrong: a value, a file, a folder, the data, or a learning rate with which the loss is not finite.
_USER_ERRORS = (
    *(ValueError, OSError, MemoryError, FloatingPointError),
    *(DatasetsError, SafetensorError, yaml.YAMLError),
)
# Their messages say by themselves what is wrong.
_CLEAR_ERRORS = (ValueError, OSError, FloatingPointError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A context, or a decorator of a command, that prints ``error: ...`` in one line and exits with code 2.

    Other exceptions than those of wrong values, files, folders and data keep their traceback. Of these it is in the
    log at level DEBUG.

    Raises:
        SystemExit: If the user got something wrong.
    """
    try:
        yield
    except _USER_ERRORS as error:
        logger.debug("the command failed", exc_info=True)
        text = " ".join(str(error).split())
        if not isinstance(error, _CLEAR_ERRORS) or not text:
            text = f"{type(error).__name__}: {text}".rstrip(": ")
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2) from None


class _RaisingParser(ArgumentParser):
    """A parser that raises for a wrong flag; argparse would print all flags and exit."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # `--a_b` is also called `--a-b`
        raise ValueError(re.sub(r"^the following arguments are required: (.*)", _missing, message))


def _missing(match: re.Match) -> str:
    names = match[1].split(", ")
    return f"give {' and '.join(f'`{name}`' for name in names)}; see --help"


_FILE_FLAG = _RaisingParser(add_help=False, allow_abbrev=False)
_FILE_FLAG.add_argument("--config", action="append")


class _HelpAll(Action):
    """`--help_all`."""

    def __call__(self, parser: "CommandParser", *_: Any) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


class CommandParser(_RaisingParser, HfArgumentParser):
    """`HfArgumentParser` that takes a YAML file of the same names before the flags, and raises for a wrong flag.

    Flags must be written in full. Of several values of one name the last wins, so flags win over the file.

    Args:
        *dataclass_types: Dataclasses whose fields are the flags.
        command: Name of the command.
        about: What it does, with examples: the docstring of its module.
        groups: Title -> names of the flags that `--help` shows, in that order; None shows all in one group.
        left_out: Fields with a default that are no flags.
        kind: Kind of the package's files that `--config` finds by name, see :mod:`singer_hf.configs`.
    """

    def __init__(
        self,
        *dataclass_types: type,
        command: str = "",
        about: str | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        left_out: Collection[str] = (),
        kind: str | None = None,
    ) -> None:
        self.command, self.about, self.left_out, self.kind = command, about or "", left_out, kind
        super().__init__(dataclass_types, allow_abbrev=False)
        self.add_argument("--help_all", action=_HelpAll, nargs=0, dest=SUPPRESS, default=SUPPRESS)
        self.groups = groups or {"Flags": list(self.flags())}

    def _parse_dataclass_field(self, parser: ArgumentParser, field: Field) -> None:
        if field.name in self.left_out:
            self.set_defaults(**{field.name: field.default})
        else:
            super()._parse_dataclass_field(parser, field)
            action = parser._option_string_actions[f"--{field.name}"]
            if action.type is string_to_bool:
                action.nargs, action.const = "?", True  # the flag alone, also where the default is open

    def flags(self) -> dict[str, Action]:
        """Returns the flags by the names of their fields; of `--x` and `--no_x` the first."""
        flags: dict[str, Action] = {}
        for action in self._actions:
            if action.dest not in (SUPPRESS, "help"):
                flags.setdefault(action.dest, action)
        return flags

    def format_help(self) -> str:
        """Overrides argparse: the groups, in which flags of other libraries have one sentence."""
        flags = self.flags()
        groups = {title: [flags[name] for name in names] for title, names in self.groups.items()}
        return help_text(self.command, self.about, groups, brief=foreign_fields(self.dataclass_types))

    def format_help_all(self) -> str:
        """Returns the text of `--help_all`: the groups, and all other flags."""
        flags = self.flags()
        groups = {title: [flags.pop(name) for name in names] for title, names in self.groups.items()}
        return help_text(self.command, self.about, groups | ({"Further flags": flags.values()} if flags else {}))

    def parse(self, arguments: list[str]) -> tuple[Any, ...]:
        """Returns one instance of each dataclass.

        Args:
            arguments: The command line, see :func:`expand_file`.

        Raises:
            OSError: If the YAML file cannot be read.
            ValueError: If the file or a flag is wrong.
        """
        flags = expand_file(arguments, self.kind)
        self.given_names(flags)
        *parsed, unknown = self.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            raise ValueError(f"got {unknown} without a flag before; put a value with spaces in quotes")
        return tuple(parsed)

    def given_names(self, flags: list[str]) -> set[str]:
        """Returns the names of the fields that flags give a value to.

        Raises:
            ValueError: If there is no such flag.
        """
        names = [flag.partition("=")[0] for flag in flags if flag.startswith("--")]
        for name in names:
            if name not in self._option_string_actions:
                raise ValueError(unknown_flag(name, [*self._option_string_actions, "--config"]))
        return {self._option_string_actions[name].dest for name in names}


def expand_file(arguments: list[str], kind: str | None = None) -> list[str]:
    """Replaces a YAML file by the flags that it stands for, which precede the others.

    A list becomes several values, a mapping becomes JSON, and a name without a value (``null``) is left out.

    Args:
        arguments: The command line, see :func:`split_file`.
        kind: See :func:`split_file`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is no valid YAML of the form ``name: value``, or something else than flags follows it.
    """
    file, flags = split_file(arguments, kind)
    return flags if file is None else [*settings_to_flags(load_yaml(file)), *flags]


def split_file(arguments: list[str], kind: str | None = None) -> tuple[str | None, list[str]]:
    """Returns the path of the YAML file of a command line, or None, and the flags.

    Args:
        arguments: The command line without the name of the program. The file is its first word or follows `--config`;
            it is a path or the name of a file of the package.
        kind: Kind of the files of the package, see :mod:`singer_hf.configs`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something else than flags follows the file, or there are two files.
    """
    given, flags = _FILE_FLAG.parse_known_args(arguments)
    files = given.config or []
    if flags and not flags[0].startswith("-"):
        files = [flags.pop(0), *files]
        if flags and not flags[0].startswith("-"):
            raise ValueError(f"only flags can follow the file {files[0]!r}, got {flags[0]!r}")
    if len(files) > 1:
        raise ValueError(f"a command takes one YAML file, got {files}")
    return (_existing(files[0], kind) if files else None), flags


def _existing(name: str, kind: str | None) -> str:
    path = name if kind is None else find(name, kind)
    if not Path(path).is_file():
        end = f"or a name of the package, got {name!r}; {hint(name, kind)}" if kind else f"got {name!r}"
        raise FileNotFoundError(f"`--config` must be a YAML file that exists{' ' if kind else ', '}{end}")
    return path


def settings_to_flags(settings: dict[str, Any]) -> list[str]:
    """Returns settings as flags.

    Args:
        settings: Value by name; None is left out.

    Raises:
        ValueError: If a list has an empty entry.
    """
    flags = []
    for name, value in settings.items():
        if isinstance(value, list):
            if None in value:
                raise ValueError(f"`{name}` must have no empty entries, got {value}")
            flags += [f"--{name}", *map(_to_text, value)]
        elif value is not None:
            flags.append(f"--{name}={_to_text(value)}")
    return flags


def _to_text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict) else str(value)
