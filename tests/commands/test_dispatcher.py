"""`singer-hf` and `python -m singer_hf`: which command runs, what it imports, and what the wheel holds."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
from printed import ROOT

import singer_hf
from singer_hf.commands import dispatcher
from singer_hf.commands.flag_names import find_unknown, listed_flags, unknown_flag

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "sklearn", "matplotlib")


def loaded_by(program):
    """The heavy libraries that a program imports in a process of its own, and what it prints."""
    program = f"import sys\n{program}\nprint([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stderr.splitlines()[-1], done.stdout


@pytest.mark.parametrize("flags", [[], ["--help"], ["--list"], ["--version"], ["audit", "--help"]])
def test_what_needs_no_model_imports_no_library(flags):
    heavy, printed = loaded_by(f"from singer_hf.commands.dispatcher import main\nmain({flags})")
    assert heavy == "[]"
    assert printed


def test_no_command_s_help_imports_a_library():
    heavy, printed = loaded_by(
        "from singer_hf.commands import dispatcher\n"
        "dispatcher.made_with = lambda: (dispatcher.STORED_HELP / 'distill.txt').read_text().splitlines()[0]\n"
        "for name in dispatcher.COMMANDS: dispatcher.main([name, '--help'])"
    )
    assert heavy == "[]"
    assert printed.count("usage: singer-hf ") == len(dispatcher.COMMANDS)


def test_a_mistyped_flag_and_all_flags_import_no_library():
    heavy, printed = loaded_by(
        "from singer_hf.commands import dispatcher\n"
        "dispatcher.made_with = lambda: (dispatcher.STORED_HELP / 'distill.txt').read_text().splitlines()[0]\n"
        "dispatcher.main(['distill', '--help_all'])\n"
        "try: dispatcher.main(['distill', '--rank', '8', '--lerning_rate=1'])\n"
        "except SystemExit as stopped: print(stopped.code)\n"
    )
    assert heavy == "[]"
    assert "  --adam_beta1 " in printed
    assert printed.splitlines()[-1] == "2"


def test_a_mistyped_flag_is_named_with_the_nearest():
    known = ["--learning_rate", "--seed", "--config"]
    assert find_unknown(["--learning-rate=1", "--no_seed", "value", "-1"], known) is None
    assert find_unknown(["--seed", "1", "--lerning_rate=1"], known) == "--lerning_rate"
    assert unknown_flag("--lerning_rate", known) == "unknown flag `--lerning_rate`; did you mean `--learning_rate`?"
    assert unknown_flag("--xyz", known) == "unknown flag `--xyz`; see --help"


def test_flags_are_read_from_the_text_of_all():
    text = "  --r, --rank                    Rank.\n  --seed  Seed, not --that.\n      --not_this\n"
    assert listed_flags(text) == ["--r", "--rank", "--seed"]


def test_the_package_runs_as_a_module_and_only_the_chosen_command_is_imported():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "singer_hf", "adit"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: unknown command `adit`; did you mean `audit`?"
    assert "singer_hf.commands.dispatcher" in done.stderr
    assert "singer_hf.commands.audit" not in done.stderr


def test_a_command_gets_the_flags_behind_its_name(monkeypatch):
    given = []
    monkeypatch.setattr("singer_hf.commands.audit.main", given.append)
    dispatcher.main(["audit", "--output_dir", "o"])
    monkeypatch.setattr(sys, "argv", ["singer-hf", "audit", "--max_samples", "3"])
    dispatcher.main()
    assert given == [["--output_dir", "o"], ["--max_samples", "3"]]


def test_every_command_stands_in_the_usage(capsys):
    dispatcher.main([])
    printed = capsys.readouterr().out
    for name, text in dispatcher.COMMANDS.items():
        assert f"singer-hf {name} " in printed
        assert text in printed
    assert max(map(len, printed.splitlines())) < 120


def test_an_unknown_command_without_a_near_one_lists_all(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        dispatcher.main(["quite_else"])
    assert capsys.readouterr().err == (
        f"error: unknown command `quite_else`; the commands are {', '.join(dispatcher.COMMANDS)}\n"
    )


def test_the_public_names_are_imported_when_they_are_used():
    assert set(singer_hf.__all__) <= set(dir(singer_hf))
    for name in singer_hf.__all__:
        assert getattr(singer_hf, name) is not None
    with pytest.raises(AttributeError, match=r"^module 'singer_hf' has no attribute 'SingerConfg'$"):
        singer_hf.SingerConfg  # noqa: B018


def test_importing_the_package_before_peft_registers_the_method():
    """After PEFT: tests/tuner/test_saving.py."""
    _, printed = loaded_by(
        "import singer_hf, peft\n"
        "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known\n"
        "print(known['SINGER'].__name__)"
    )
    assert printed == "SingerConfig\n"


def test_the_wheel_holds_configs_help_and_the_demo_s_teacher(tmp_path):
    flags = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    copy = tmp_path / "copy"  # setuptools writes into the folder that it builds
    shutil.copytree(ROOT / "singer_hf", copy / "singer_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, str(copy)], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = next(name for name in names if name.endswith("entry_points.txt"))
        assert "singer-hf = singer_hf.commands.dispatcher:main" in wheel.read(metadata).decode()
        assert json.loads(wheel.read("singer_hf/demo/teacher/config.json"))["model_type"] == "vit"
    assert {file.relative_to(copy).as_posix() for file in (copy / "singer_hf").rglob("*.*") if file.is_file()} <= names
