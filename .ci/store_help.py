"""Stores the texts of `--help` and `--help_all` of every command in singer_hf/commands/help.

From there they are printed without any import.

    python .ci/store_help.py [command ...]

Run it after a change of flags or defaults, and with a new version of transformers; tests/commands/test_help.py says
when that is needed.
"""

import contextlib
import importlib
import io
import sys

from singer_hf.commands.dispatcher import COMMANDS, STORED_HELP, made_with


def live_help(command: str, flag: str) -> str:
    """What the command itself prints."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        importlib.import_module(f"singer_hf.commands.{command}").main([flag])
    return text.getvalue()


def main() -> None:
    """Writes the files."""
    STORED_HELP.mkdir(exist_ok=True)
    for command in sys.argv[1:] or COMMANDS:
        short, whole = live_help(command, "--help"), live_help(command, "--help_all")
        # The defaults of TrainingArguments are those of a version.
        head = made_with() if "TrainingArguments" in short else ""
        for name, text in ((command, short), (f"{command}_all", whole)):
            (STORED_HELP / f"{name}.txt").write_text(f"{head}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
