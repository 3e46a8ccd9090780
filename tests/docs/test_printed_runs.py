"""Every command that README and docs print runs as printed, in this process, on tiny stand-ins.

Under the printed names lie a small teacher with artifacts, students of four blocks, drawn images and short comparisons
(`tests/builders/printed_world.py`). Behind the printed flags stand those of `SMALL`, which win: few steps, few images,
the CPU. Models that benchmarks make themselves are narrow. No figures are drawn, as without the extra `plots`. Of
commands that differ in names and numbers only, one runs, and of the programs in `ENOUGH` none whose flags another
command has, too. `NOT_RUN` has the commands that do not run here, and why; `test_printed_commands.py` parses all.
"""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from printed import COMMANDS, ELSEWHERE, REQUIRED, ROOT
from printed_world import QUIET, make_world, run_script, write_study
from transformers import ResNetConfig, ViTConfig

from singer_hf.commands import dispatcher
from singer_hf.configs import COMPARISONS, shipped_files

DISTILL = "accelerate launch examples/distill.py"
LAUNCH = "accelerate launch --config_file examples/accelerate"
NOT_RUN = ELSEWHERE | {
    DISTILL: "the demo: tests/demo/test_demo.py",
    f"{DISTILL} ... --push_to_hub --hub_model_id user/student": "uploads: tests/training/test_hub_server.py",
    f"{LAUNCH}/multi_gpu.yaml --num_processes 8 examples/distill.py --config dinov2-l_to_vit-s": "needs 8 GPUs",
    f"{LAUNCH}/multi_node.yaml --machine_rank 0 --main_process_ip 10.0.0.1 examples/distill.py "
    "--config dinov2-l_to_vit-s --output_dir /shared/student": "needs several machines",
    f"{LAUNCH}/fsdp2.yaml --num_processes 8 examples/distill.py --teacher_name_or_path "
    "facebook/dinov3-vit7b16-pretrain-lvd1689m --student_config vit-base-patch16 --dataset_name path/to/images "
    "--output_dir outputs/student --teacher_dtype bfloat16": "needs 8 GPUs",
    "sbatch examples/slurm/distill.sbatch --config dinov2-l_to_vit-s --output_dir /shared/student": "needs Slurm: "
    "tests/docs/test_slurm_job.py",
    "singer-hf evaluate --model_name_or_path outputs/student --benchmark food101 --protocol dinov2": "loads Food-101",
    "python benchmarks/cleaning.py --planted demo-teacher --unplanted outputs/demo_unplanted --dataset_name "
    '"drawn scenes" --output_dir outputs/cleaning/scenes --seeds 0 1 2 --num_probe_images 2000 '
    "--num_test_images 1000": "draws 4,500 scenes, 12 s; the script runs on the other data",
    "pip install .": "installs the package: .ci/release_check",
    'pip install ".[plots]"': "installs the package: .ci/run",
    "python tests/faults/random_kills.py --rounds 20 --seed 0": "kills processes at random; fixed cases: "
    "tests/training/test_resume.py",
}
TRAINING = [*QUIET, "--max_steps", "1", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
ONE_ROUND = ["--rounds", "1", "--warmup", "0", "--batch_size", "1", "--threads", "1"]
LAUNCHED = "examples/distill.py"
SMALL = {
    "audit": ["--max_samples", "8", "--num_pictures", "1"],
    "clean": [*TRAINING, "--num_audit_images", "63"],
    "distill": [*TRAINING, "--num_audit_images", "8", "--dataloader_num_workers", "0"],
    LAUNCHED: [*TRAINING, "--num_audit_images", "8"],
    "evaluate": ["--max_train_samples", "24", "--max_test_samples", "5", "--num_epochs", "1", "--resamples", "5"],
    "compare": ["--num_processes", "1"],
    "examples/train_teacher.py": [
        *(*TRAINING, "--max_test_samples", "8", "--bf16", "False", "--torch_compile", "False"),
    ],
    "examples/benchmark.py": [*ONE_ROUND, "--r", "4"],
    "benchmarks/attach.py": ["--num_blocks", "4", "--r", "4", "--repeats", "1", "--threads", "1"],
    "benchmarks/audit.py": ["--batch_size", "1", "--num_batches", "1", "--threads", "1"],
    "benchmarks/cached_features.py": ["--num_epochs", "2"],
    "benchmarks/cleaning.py": [
        *("--seeds", "0", "--methods", "neighbor", "--num_probe_images", "30", "--num_test_images", "10"),
    ],
    "benchmarks/loader.py": ["--num_images", "2", "--rounds", "1", "--batch_size", "1", "--size", "32"],
    "benchmarks/planted_shares.py": [],
    "benchmarks/refined_tokens.py": ["--num_steps", "1", "--batch_size", "8", "--num_images", "8"],
    "benchmarks/students.py": ONE_ROUND,
}
# Flags with other values where they are printed.
SMALLER = {"--saved_scenes": "8", "--resize_size": "72", "--seeds": "0"}
SMALLER |= {"--num_cached_crops": "1 --max_steps 33"}  # more than one epoch
# What a command leaves in its output folder.
LEFT = {"audit": "report.html", "clean": "adapter_model.safetensors", "distill": "model.safetensors"}
LEFT |= {"evaluate": "results.json", "compare": "comparison.md", "examples/train_teacher.py": "teacher.json"}
LEFT[LAUNCHED] = LEFT["distill"]
# Flags whose values are names.
NAMES = re.compile(r"(\w+_name_or_path|\w+_name|\w+_config|\w+_dir|\w*teacher|planted|unplanted|camvid)")
# Of these programs a command is covered by another one that has all its flags, and more.
ENOUGH = {"clean", "compare", "evaluate", *(program for program in SMALL if "bench" in program)}
PROCESSES = re.compile(r"--num_processes \d+")  # is always 1 here


def words_of(command: str) -> tuple[str, list[str]]:
    """Name of the program and its flags; the flags of a launcher must be known to it."""
    first, second, *words = shlex.split(re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command.replace(" ... ", f" {REQUIRED} ")))
    if (first, second) == ("accelerate", "launch"):
        launch = launch_command_parser().parse_known_args(words)[0]
        assert launch.config_file is None or (ROOT / launch.config_file).is_file()
        assert launch.training_script == LAUNCHED
        return LAUNCHED, launch.training_script_args
    assert first in ("singer-hf", "python"), f"no way to run {command}"
    return second, words


def form_of(command: str) -> frozenset[str]:
    """The program, and its flags with their values; names and numbers do not count, several count as two."""
    program, words = words_of(PROCESSES.sub("", command))
    flags, parts = [], " ".join(words[program == "compare" :]).split("--")
    for name, *values in (part.split() for part in parts if part):
        is_name = NAMES.fullmatch(name) is not None
        kept = ["..." if is_name or re.fullmatch(r"[\d.e-]+|\S+=\S+", value) else value for value in values]
        flags.append(" ".join([name, *(kept if set(kept) != {"..."} else kept[:2])]))
    return frozenset([program.replace(LAUNCHED, "distill"), *flags])


def is_covered(form: frozenset[str]) -> bool:
    """Whether another command has all flags of this one, and more, and that is enough."""
    return bool(form & ENOUGH) and any(form < other for other in FORMS)


FORMS = {form_of(command): command for command, _ in COMMANDS if command not in NOT_RUN}
RUN = [command for form, command in FORMS.items() if not is_covered(form)]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("printed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_world()
        Path("outputs").rename("kept")
    return folder, {*folder.iterdir()}


@pytest.fixture
def world(stand_ins, monkeypatch):
    """The stand-ins as working folder, without what other commands have written."""
    folder, files = stand_ins
    for file in {*folder.iterdir()} - files:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    shutil.copytree(folder / "kept", folder / "outputs", symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    find = importlib.util.find_spec
    without_plots = lambda name, *more: None if name == "matplotlib" else find(name, *more)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", without_plots)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)
    torch.set_num_threads(1)


def run_printed(command: str) -> None:
    """Runs a command in a world; checks that it leaves what it should."""
    program, flags = words_of(command)
    folder = output_dir(program, flags) if program in LEFT else None
    if folder:
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier command of the page may have left
    if program == "compare" and flags[0] in shipped_files(COMPARISONS):
        write_study(flags[0])
    if "--resume" in flags:
        start(program, [flag for flag in flags if flag != "--resume"] + ["--save_strategy", "epoch"])
    start(program, flags)
    if folder and flags != ["--list"]:
        assert any(folder.rglob(LEFT[program])) == ("--dry_run" not in flags)


def output_dir(program: str, flags: list[str]) -> Path:
    """Where a program writes."""
    if "--output_dir" in flags:
        return Path(flags[flags.index("--output_dir") + 1])
    return Path("outputs/evaluation" if program == "evaluate" else f"outputs/compare/{flags[0]}")


def start(program: str, flags: list[str]) -> None:
    """Starts a program of the repository with few steps and images."""
    small = [] if flags == ["--list"] else SMALL[program]
    if small[: len(QUIET)] == [*QUIET] and not {"--save_strategy", "--resume"} & set(flags):
        small = [*small, "--save_strategy", "no"]
    for name in {*SMALLER} & {*flags}:
        small = [*small, name, *SMALLER[name].split()]
    if program in dispatcher.COMMANDS:
        dispatcher.main([program, *flags, *small])
    else:
        with mock.patch.multiple("transformers", **NARROW) if "bench" in program else nullcontext():
            run_script(program, [*flags, *small])


def narrowed(make: Callable, **narrow: object) -> Callable:
    """A maker of configs with these sizes, whatever others are asked for."""
    return lambda **sizes: make(**sizes | narrow)


NARROW = {
    "ViTConfig": narrowed(ViTConfig, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96),
    "ResNetConfig": narrowed(ResNetConfig, embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4),
}


@pytest.mark.usefixtures("world")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", RUN, ids=lambda command: command[:100])
def test_every_printed_command_runs(command):
    run_printed(command)


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    "command",
    [
        "singer-hf audit --model_name_or_path demo-teacher --dataset_name pictures --output_dir audit",
        "singer-hf audit --model_name_or_path demo-teacher outputs/demo/singr --demo --output_dir audit",
        "singer-hf distill ... --dataset_name parquet/ --image_column png",
        "singer-hf evaluate --model_name_or_path outputs/student --benchmark camvid --dataset_name labelled",
        "singer-hf clean --model_name_or_path facebook/dinov2-large --dataset_name photos/cat --output_dir cleaned",
        "singer-hf compare cifar10_objectives --teacher_name_or_path outputs/teacher_0.2/planted",
        f"{LAUNCH}/no_gpu.yaml examples/distill.py ...",
    ],
)
def test_a_command_that_does_not_run_is_found(command):
    with pytest.raises((SystemExit, AssertionError)):
        run_printed(command)


def test_what_does_not_run_is_still_printed():
    assert set(NOT_RUN) <= {command for command, _ in COMMANDS}
