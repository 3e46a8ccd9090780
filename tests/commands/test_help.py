"""`--help` and `--help_all`: their length, that their defaults hold, and that the stored texts are up to date."""

import re
from dataclasses import MISSING, fields
from importlib import import_module

import pytest
from peft import PeftConfig

from singer_hf.commands import dispatcher
from singer_hf.commands.compare import Flags
from singer_hf.commands.distill_flags import ScriptArguments
from singer_hf.commands.evaluate import Settings
from singer_hf.demo.run import DemoSettings
from singer_hf.inspection.inputs import AuditSettings
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.tuner import SingerConfig

SETTINGS = {
    "audit": [AuditSettings],
    "compare": [Flags],
    "demo": [DemoSettings],
    "distill": [ScriptArguments, SingerTrainingArguments, SingerConfig],
    "evaluate": [Settings],
}
every_command = pytest.mark.parametrize("command", dispatcher.COMMANDS)
every_setting = pytest.mark.parametrize("command", SETTINGS)


@pytest.fixture
def text_of(capsys):
    """Returns a function of a command and a flag that gives what the command itself prints."""

    def call(command, flag="--help"):
        with pytest.raises(SystemExit, match=r"^0$"):
            import_module(f"singer_hf.commands.{command}").main([flag])
        return capsys.readouterr().out

    return call


def printed_defaults(text):
    """Name of the flag -> what the text says behind it."""
    found = re.findall(r"^  --(\w+)(?:, --\w+)?(?: \.\.\.)?(?:\n)? +(.*(?:\n {20,}.*)*)", text, re.MULTILINE)
    return {name: " ".join(rest.split()) for name, rest in found}


def own_fields(kind):
    return [field for field in fields(kind) if field.init and field.name in vars(kind).get("__annotations__", {})]


@every_command
def test_the_help_has_at_most_120_lines_of_our_width(command, text_of):
    lines = text_of(command).splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) < 120


@every_command
@pytest.mark.parametrize(("end", "flag"), [("", "--help"), ("_all", "--help_all")])
def test_the_stored_help_is_what_the_command_prints(command, end, flag, text_of):
    head = (dispatcher.STORED_HELP / f"{command}{end}.txt").read_text(encoding="utf-8").split("\n")[0]
    if head not in ("", dispatcher.made_with()):
        pytest.skip(f"stored with {head}")
    stale = f"run `python .ci/store_help.py {command}`"
    assert dispatcher.stored_help(f"{command}{end}") == text_of(command, flag), stale


@every_setting
def test_the_printed_defaults_are_those_of_the_dataclasses(command, text_of):
    shown = printed_defaults(text_of(command))
    known = {field.name: field for kind in SETTINGS[command] for field in fields(kind)}
    assert set(shown) <= {*known, "config", "help_all"}
    for name, field in known.items():
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if name in shown and default not in (None, [], ""):
            words = {MISSING: "(required)", True: "(default: on)", False: "(default: off)"}
            expected = f"(default: {getattr(default, 'value', default)})".replace("'", '"')
            is_word = default is MISSING or isinstance(default, bool)
            assert shown[name].endswith(words[default] if is_word else expected), name


@every_setting
def test_the_help_shows_every_flag_of_ours_before_the_others(command, text_of):
    shown = printed_defaults(text_of(command))
    own = {field.name for kind in SETTINGS[command] for field in own_fields(kind)} - {"calibration_images"}
    of_trainer = {"remove_unused_columns", "logging_nan_inf_filter"}  # must stay as they are
    assert own - of_trainer <= set(shown)


def test_defaults_that_are_found_later_are_said_in_words(text_of):
    shown = printed_defaults(text_of("distill"))
    assert shown["gate"].endswith(f"Default: {SingerConfig().gate}.")
    assert shown["output_dir"].endswith(f"Default: {SingerTrainingArguments(use_cpu=True).output_dir}.")
    assert f"at most {SingerConfig().resolve_rank(4096)}." in shown["r"]


def test_help_all_has_every_flag_and_nothing_of_peft(text_of):
    shown = printed_defaults(text_of("distill", "--help_all"))
    assert {field.name for field in fields(SingerTrainingArguments) if field.init} <= set(shown)
    assert not {field.name for field in fields(PeftConfig)} & set(shown)
    assert len(shown) > len(printed_defaults(text_of("distill")))


def test_a_stored_help_of_another_version_of_transformers_is_not_printed(monkeypatch):
    assert dispatcher.stored_help("no_such_command") is None
    monkeypatch.setattr(dispatcher, "made_with", lambda: "transformers 0.1")
    assert dispatcher.stored_help("distill") is None
    assert dispatcher.stored_help("audit").startswith("usage: singer-hf audit")
