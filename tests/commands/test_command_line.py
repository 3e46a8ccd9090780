"""What all commands share: flags, YAML files, and one line with exit code 2 for what a user got wrong."""

import re
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors import SafetensorError

from singer_hf.commands.command_line import CommandParser, one_line_errors

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = ("distill", "benchmark", "train_teacher", "train_demo_teacher")


@dataclass
class Settings:
    name: str = field(metadata={"help": "A text."})
    learning_rate: float = field(default=1.0, metadata={"help": "A number."})
    layers: list[int] | None = field(default=None, metadata={"help": "Several numbers."})
    options: str = field(default="{}", metadata={"help": "JSON."})
    resume: bool = field(default=False, metadata={"help": "A switch."})


def parse(*arguments):
    return CommandParser(Settings).parse([str(argument) for argument in arguments])[0]


def yaml_file(folder, text):
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def test_flags_win_over_the_file_whose_values_have_the_types_of_the_flags(tmp_path):
    file = yaml_file(tmp_path, 'name: a\nlearning_rate: 1e-3\nlayers: [-1, 2]\noptions: {"x": 1}\nresume: true\n')
    assert parse(file) == Settings("a", 1e-3, [-1, 2], '{"x": 1}', True)
    assert parse(file, "--name", "b", "--layers", 5, "--resume", "no") == Settings("b", 1e-3, [5], '{"x": 1}')


def test_null_in_a_file_leaves_the_flag_out(tmp_path):
    assert parse(yaml_file(tmp_path, "name: a\nlearning_rate: null\nlayers: ~\noptions:\n")) == Settings("a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_r", "3"], "unknown flag `--learning_r`; did you mean `--learning_rate`?"),
        (["--learning-r", "3"], "unknown flag `--learning-r`; did you mean `--learning_rate`?"),
        (["--leraning_rate=3"], "unknown flag `--leraning_rate`; did you mean `--learning_rate`?"),
        (["--quite_else"], "unknown flag `--quite_else`; see --help"),
        (["more"], "got ['more'] without a flag before; put a value with spaces in quotes"),
        (["--learning_rate", "fast"], "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        (["--layers", "2", "x"], "argument --layers: invalid int value: 'x'"),
    ],
)
def test_wrong_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse("--name", "a", *arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_r: 1\n", "unknown flag `--learning_r`; did you mean `--learning_rate`?"),
        ("layers: [1, null]\n", "`layers` must have no empty entries, got [1, None]"),
        ("name: a\nname: b\n", "`name` stands in line 1 and again in line 2"),
        ("", "must have lines of the form `name: value`, got nothing"),
    ],
)
def test_wrong_files_are_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(yaml_file(tmp_path, text), "--name", "a")


def test_one_file_stands_before_the_flags(tmp_path):
    file = yaml_file(tmp_path, "layers: [1]\n")
    with pytest.raises(ValueError, match=r"^only flags can follow the file '.*', got 'b\.yaml'$"):
        parse(file, "b.yaml")
    with pytest.raises(FileNotFoundError):
        parse(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("`r` must be 1,\n  got 2"), "error: `r` must be 1, got 2"),
        (FileNotFoundError(2, "No such file", "a b"), "error: [Errno 2] No such file: 'a b'"),
        (FloatingPointError("step 3"), "error: step 3"),
        (SafetensorError("too short"), "error: SafetensorError: too short"),
        (MemoryError(), "error: MemoryError"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_2(error, line, capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("error", [TypeError("a bug"), KeyboardInterrupt(), SystemExit(143)])
def test_everything_else_passes(error):
    with pytest.raises(type(error)) as caught, one_line_errors():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_one_line_what_is_wrong(command, tmp_path, monkeypatch, capsys):
    script, file = EXAMPLES / f"{command}.py", yaml_file(tmp_path, "a: [1\n")
    for arguments in ([file], [tmp_path / "none.yaml"], [tmp_path / "none.yaml", "--output_di", "o"]):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^2$"):
            runpy.run_path(str(script), run_name="__main__")
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1
        assert printed.err.startswith("error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_abbreviations(command, tmp_path, monkeypatch, capsys):
    script = EXAMPLES / f"{command}.py"
    (tmp_path / "study.yaml").write_text("{}")
    given = [str(tmp_path / "study.yaml")] if command == "compare" else []
    flag = "--batch_siz" if command == "benchmark" else "--output_di"
    monkeypatch.setattr(sys, "argv", [str(script), *given, flag, "x"])
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_path(str(script), run_name="__main__")
    assert re.fullmatch(rf"error: unknown flag `{flag}`; did you mean `{flag}[er]`\?\n", capsys.readouterr().err)
