"""What all commands share: flags, YAML files, and one line with exit code 2 for what a user got wrong."""

import re
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors import SafetensorError

from singer_hf.commands import dispatcher
from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.commands.dispatcher import COMMANDS
from singer_hf.configs import RUNS

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("distill", "benchmark", "train_teacher", "train_demo_teacher")


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
        (["--confg", "x.yaml"], "unknown flag `--confg`; did you mean `--config`?"),
        (["more"], "got ['more'] without a flag before; put a value with spaces in quotes"),
        (["--learning_rate", "fast"], "argument --learning_rate: invalid float value: 'fast'"),
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


def test_a_missing_flag_is_named():
    with pytest.raises(ValueError, match=r"^give `--name`; see --help$"):
        parse()


@pytest.mark.parametrize("place", [["--config", "FILE"], ["--config=FILE"], ["FILE"]])
def test_the_file_may_follow_its_flag_and_flags_win_over_it(tmp_path, place):
    file = yaml_file(tmp_path, "name: a\nlayers: [1]\n")
    words = [word.replace("FILE", str(file)) for word in place]
    assert parse(*words, "--layers", 2) == Settings("a", layers=[2])
    if place != ["FILE"]:
        assert parse("--layers", 2, *words) == Settings("a", layers=[2])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^`--config` must be a YAML file that exists, got 'none\.yaml'$"):
        parse("--config", "none.yaml")
    with pytest.raises(FileNotFoundError, match=r"got 'vit-l_to_vit-x'; did you mean 'vit-l_to_vit-t'\?"):
        CommandParser(Settings, kind=RUNS).parse(["--config", "vit-l_to_vit-x"])
    with pytest.raises(ValueError, match=r"^argument --config: expected one argument$"):
        parse("--config")
    file = str(yaml_file(tmp_path, "name: a\n"))
    with pytest.raises(ValueError, match=r"^a command takes one YAML file, got \["):
        parse(file, "--config", file)


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


def call(name, arguments, monkeypatch):
    """Runs a command or a script of examples/ in this process."""
    if name in COMMANDS:
        return dispatcher.main([name, *map(str, arguments)])
    script = str(EXAMPLES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    return runpy.run_path(script, run_name="__main__")


@pytest.mark.parametrize("command", [*COMMANDS, *SCRIPTS])
def test_every_command_says_in_one_line_what_is_wrong(command, tmp_path, monkeypatch, capsys):
    file = yaml_file(tmp_path, "a: [1\n")
    for arguments in ([file], [tmp_path / "none.yaml"], [tmp_path / "none.yaml", "--output_di", "o"], ["--config"]):
        with pytest.raises(SystemExit, match=r"^2$"):
            call(command, arguments, monkeypatch)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1
        assert printed.err.startswith("error: ")


@pytest.mark.parametrize("command", [*COMMANDS, *SCRIPTS])
def test_every_command_refuses_abbreviations(command, tmp_path, monkeypatch, capsys):
    flag = "--batch_siz" if command == "benchmark" else "--output_di"
    with pytest.raises(SystemExit, match=r"^2$"):
        call(command, [flag, "x"], monkeypatch)
    assert re.fullmatch(rf"error: unknown flag `{flag}`; did you mean `{flag}[er]`\?\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit"], "give `--model_name_or_path` and `--output_dir`; see --help"),
        (["audit", "--modl", "m"], "unknown flag `--modl`; did you mean `--model_name_or_path`?"),
        (["audit", "--model", "m"], "unknown flag `--model`; did you mean `--model_name_or_path`?"),
        (["distill", "--use_cpu"], "give `--teacher_name_or_path` and `--dataset_name`; see --help"),
        (["evaluate", "--benchmrk", "scenes"], "unknown flag `--benchmrk`; did you mean `--benchmark`?"),
        (["demo", "--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (
            ["compare", "--seeds", "1"],
            "give the YAML file of a comparison first; `singer-hf --list` lists those of the package",
        ),
        (["audit", "none.yaml"], "`--config` must be a YAML file that exists, got 'none.yaml'"),
    ],
)
def test_what_is_wrong_is_said_word_for_word(arguments, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        dispatcher.main(arguments)
    assert capsys.readouterr().err == f"error: {message}\n"
