"""`singer-hf COMMAND`: imports the module of one command, and nothing that takes time before that is needed."""

import difflib
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from singer_hf.commands.flag_names import find_unknown, listed_flags, unknown_flag
from singer_hf.configs import listing
from singer_hf.version import __version__

# A command is a module of this folder with `main(arguments)`, and a line here.
COMMANDS = {
    "demo": "distil two small students on drawn scenes, without any download, in a few minutes",
    "audit": "measure the high-norm tokens of models: metrics, figures, one HTML page",
    "clean": "train an adapter that removes a model's artifacts, without a student",
    "distill": "distil a vision transformer into a small student",
    "evaluate": "evaluate frozen features: linear probe, kNN, segmentation, depth",
    "compare": "compare methods and seeds for one teacher and one student",
}
STORED_HELP = Path(__file__).parent / "help"
_LIBRARY = "transformers"  # whose training arguments have defaults of their own


def main(arguments: list[str] | None = None) -> None:
    """Runs a command.

    Args:
        arguments: Name and flags of the command; None takes those of the process.

    Raises:
        SystemExit: If there is no such command, or the user got something else wrong.
    """
    name, *flags = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    texts = {"-h": usage, "--help": usage, "--list": listing, "--version": lambda: __version__}
    if name in texts:
        print(texts[name]())
    elif name not in COMMANDS:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        raise SystemExit(2)
    elif {"-h", "--help"} & set(flags) and (text := stored_help(name)):
        print(text, end="")
    elif text := stored_help(f"{name}_all"):
        _run_or_print_all(name, flags, text)
    else:
        import_module(f"singer_hf.commands.{name}").main(flags)


def _run_or_print_all(name: str, flags: list[str], text: str) -> None:
    """Prints the text of `--help_all`, names a mistyped flag, or runs the command."""
    known = listed_flags(text)
    if "--help_all" in flags:
        print(text, end="")
    elif wrong := find_unknown(flags, known):
        print(f"error: {unknown_flag(wrong, known)}", file=sys.stderr)
        raise SystemExit(2)
    else:
        import_module(f"singer_hf.commands.{name}").main(flags)


def usage() -> str:
    """Returns the commands and the flags that go without one."""
    rows = {f"singer-hf {name}": text for name, text in COMMANDS.items()} | {
        "singer-hf COMMAND --help": "the flags of a command",
        "singer-hf --list": "the configs, models and settings of the package, which every command finds by name",
        "singer-hf --version": "the version",
    }
    return "\n".join(f"{name:<26}{text}" for name, text in rows.items())


def stored_help(command: str) -> str | None:
    """Returns the stored text of a command's `--help`, whose making would import all that the command needs.

    None if there is none, or if its defaults are those of another version of transformers.

    Args:
        command: Name of a command; with ``_all`` behind it for `--help_all`.
    """
    file = STORED_HELP / f"{command}.txt"
    if not file.is_file():
        return None
    head, text = file.read_text(encoding="utf-8").split("\n", maxsplit=1)
    return text if head in ("", made_with()) else None


def made_with() -> str:
    """Returns the first line of a stored help that has defaults of another library."""
    return f"{_LIBRARY} {version(_LIBRARY)}"


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    end = f"did you mean `{near[0]}`?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"unknown command `{name}`; {end}"
