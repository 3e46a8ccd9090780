"""Every command that README and docs print is understood by the program that it starts.

Flags, values and names of files go through the real parsers; nothing is trained. What cannot be parsed here is listed
with the reason. `test_printed_runs.py` runs the commands on stand-ins.
"""

import re
import runpy
import shlex
import sys
import tomllib
from argparse import ArgumentParser

import pytest
from accelerate.commands.launch import launch_command_parser
from printed import COMMANDS, ELSEWHERE, REQUIRED, ROOT
from transformers import HfArgumentParser

from singer_hf.commands import compare, dispatcher, distill
from singer_hf.commands.command_line import CommandParser
from singer_hf.configs import MODELS, find


class Parsed(BaseException):
    """Raised with the settings in place of a command's work."""


@pytest.fixture(autouse=True)
def parse_only(monkeypatch):
    _stop_after(monkeypatch, CommandParser, "parse")
    _stop_after(monkeypatch, HfArgumentParser, "parse_args_into_dataclasses")
    _stop_after(monkeypatch, ArgumentParser, "parse_args")


def _stop_after(monkeypatch, kind, name):
    parse = getattr(kind, name)

    def parse_and_stop(parser, *arguments, **options):
        settings = parse(parser, *arguments, **options)
        if type(parser) is kind:
            raise Parsed(settings)
        return settings

    monkeypatch.setattr(kind, name, parse_and_stop)


def check_program(name: str, flags: list[str], monkeypatch) -> None:
    """Parses the flags of `singer-hf NAME`."""
    if name == "--list":
        return dispatcher.main([name])
    if name == "distill" and not flags:
        name = "demo"
    if name in ("distill", "compare"):
        monkeypatch.undo()  # these two check more once the flags are parsed
        monkeypatch.chdir(ROOT)
        parsed = distill.parse([*flags, "--use_cpu"])[0] if name == "distill" else compare.parse(flags)[0]
        students = [parsed.student_config] if name == "compare" else parsed.student_config or []
        assert all(student.endswith(".json") or find(student, MODELS) != student for student in students)
        return None
    with pytest.raises(Parsed):
        dispatcher.main([name, *flags])
    return None


def check_launch(words: list[str], monkeypatch) -> None:
    """Parses the flags of `accelerate launch`, and those of the script behind them."""
    launch = launch_command_parser().parse_known_args(words)[0]
    assert launch.training_script == "examples/distill.py"
    assert launch.config_file is None or (ROOT / launch.config_file).is_file()
    check_program("distill", launch.training_script_args, monkeypatch)


def check_script(words: list[str], monkeypatch) -> None:
    """Parses the flags of a script of the repository."""
    on_cpu = ["--use_cpu"] if "--bf16" in words else []  # no GPU is needed to parse it
    monkeypatch.setattr(sys, "argv", [*words, *on_cpu])
    monkeypatch.chdir(ROOT)
    with pytest.raises(Parsed):
        runpy.run_path(words[0], run_name="__main__")


def check_install(words: list[str], monkeypatch) -> None:
    """Finds the extras of `pip install`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (target,) = words
    assert set(re.findall(r"\w+", target.partition("[")[2])) <= set(extras)


def check_job(words: list[str], monkeypatch) -> None:
    """Parses the flags of a Slurm job, which are those of `singer-hf distill`."""
    assert (ROOT / words[0]).is_file()
    check_program("distill", words[1:], monkeypatch)


CHECKS = {
    "singer-hf ": lambda words, monkeypatch: check_program(words[0], words[1:], monkeypatch),
    "accelerate launch ": check_launch,
    "python ": check_script,
    "pip install ": check_install,
    "sbatch ": check_job,
}


@pytest.mark.parametrize(("command", "page"), COMMANDS, ids=[f"{page}: {command[:60]}" for command, page in COMMANDS])
def test_every_printed_command_is_understood(command, page, monkeypatch):
    if command in ELSEWHERE:
        return
    command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command)
    if " ... " in f"{command} ":
        command = command.replace("...", REQUIRED)
    start = next((start for start in CHECKS if command.startswith(start)), None)
    assert start, f"no check for this command of {page}: {command}"
    CHECKS[start](shlex.split(command.removeprefix(start)), monkeypatch)


def test_what_is_tested_elsewhere_is_still_printed():
    assert set(ELSEWHERE) <= {command for command, _ in COMMANDS}


@pytest.mark.parametrize(
    "command",
    [
        "singer-hf distill --teacher_name_or_path t --student_config vit-smal-patch16 --dataset_name d",
        "singer-hf audit --model_name_or_path t --dataset_name d --output_directory o",
        "singer-hf compare scenes_longer",
        "accelerate launch --config_file examples/accelerate/no.yaml examples/distill.py --config vit-l_to_vit-t",
        "python benchmarks/attach.py --ranks 3",
        "pip install .[fast]",
        "some-program --flag",
    ],
)
def test_a_stale_command_is_found(command, monkeypatch):
    with pytest.raises((AssertionError, ValueError, SystemExit, OSError)):
        test_every_printed_command_is_understood(command, "page", monkeypatch)
