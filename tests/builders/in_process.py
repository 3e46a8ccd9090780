"""Commands run in the process of the test."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest


def make_runner(command: ModuleType, script: str, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable:
    """Returns a function of the flags that runs the command; it returns its error message, its exit code, or None."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        try:
            command.main()
        except SystemExit as end:
            return capsys.readouterr().err.splitlines()[-1] if end.code == 2 else end.code
        return None

    return run
