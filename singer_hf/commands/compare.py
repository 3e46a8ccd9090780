"""Compares distillation methods: one student per method and seed, with the same images, order and steps for all.

    singer-hf compare cifar10_planted --num_processes 2

Writes comparison.json, comparison.md and figures/*.png into `output_dir`, every student into cells/<method>/<seed>.
Repeat the command to resume a comparison that was stopped; finished cells are kept. Flags override the file:
`--output_dir`, `--seeds 0 1`, `--methods fitnet singer_paper` (a selection from the file), `--max_steps`,
`--teacher_name_or_path`, `--clean_teacher_name_or_path`, `--dataset_name`.
"""

import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch

from singer_hf.baselines.cleaned import Cleaned
from singer_hf.cards.privacy import without_paths
from singer_hf.commands.command_line import CommandParser, one_line_errors, split_file
from singer_hf.comparison.runner import run_study
from singer_hf.comparison.study import Study, read_study
from singer_hf.configs import COMPARISONS
from singer_hf.vit.loading import load_model, model_from_config


@dataclass
class Flags:
    """Flags that override the study's file."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for all output files."})
    teacher_name_or_path: str | None = field(default=None, metadata={"help": "Teacher: folder or Hub id."})
    clean_teacher_name_or_path: str | None = field(default=None, metadata={"help": "The teacher before planting."})
    dataset_name: str | None = field(default=None, metadata={"help": "Images: folder or Hub id."})
    methods: list[str] | None = field(default=None, metadata={"help": "Run only these methods of the file."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Seeds instead of those of the file."})
    max_steps: int | None = field(default=None, metadata={"help": "Optimiser steps of every cell."})
    num_processes: int = field(default=1, metadata={"help": "Cells that run in parallel."})

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise ValueError(f"`--num_processes` must be at least 1, got {self.num_processes!r}")


def parse(arguments: list[str]) -> tuple[Study, int]:
    """Returns the study with the overrides of the command line, and the number of processes.

    Raises:
        FileNotFoundError: If there is no such study.
        ValueError: If no study is given, or a flag or the study is wrong.
    """
    file, given = split_file(arguments, COMPARISONS)
    (flags,) = CommandParser(Flags, command="compare", about=__doc__, kind=COMPARISONS).parse(given)
    if file is None:
        raise ValueError("give the YAML file of a comparison first; `singer-hf --list` lists those of the package")
    overrides = {name: value for name, value in asdict(flags).items() if name != "num_processes"}
    return read_study(file, **overrides), flags.num_processes


def check_models(study: Study) -> None:
    """Checks that the models of a study can be loaded, before the first cell.

    Raises:
        FileNotFoundError: If one of them does not exist.
        ValueError: If the adapter of a cleaned teacher does not exist or does not fit.
    """
    own = (method.teacher_name_or_path for method in study.methods.values())
    with torch.random.fork_rng(devices=[]):
        for name in {study.teacher_name_or_path, study.clean_teacher_name_or_path, *own} - {None}:
            load_model(name, "teacher_name_or_path")
        for entry in study.methods.values():
            if isinstance(entry.method, Cleaned):
                teacher = entry.teacher_name_or_path or study.teacher_name_or_path
                entry.method.prepare(load_model(teacher, "teacher_name_or_path"))
        model_from_config(study.student_config)


def facts(study: Study, num_processes: int, arguments: list[str]) -> dict[str, str]:
    """Returns the head of the report, texts without paths: command, data, steps, hardware, versions, date.

    Args:
        study: The study.
        num_processes: Cells that run in parallel.
        arguments: The command line.
    """
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = {
        "command": f"singer-hf compare {shlex.join(arguments)}",
        "teacher": study.teacher_name_or_path,
        "student": study.student_config,
        "images": f"{study.dataset_name}, {study.max_train_samples or 'all'} of the {study.train_split} split",
        "steps": f"{study.max_steps}, training settings {study.training}",
        "seeds": ", ".join(map(str, study.seeds)),
        "hardware": f"{', '.join(gpus) or f'{os.cpu_count()} CPU cores'} ({platform.machine()})",
        "processes": str(num_processes),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
    }
    return without_paths(found)


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: The study and the flags; None takes those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    study, num_processes = parse(given)
    check_models(study)
    Path(study.output_dir).mkdir(parents=True, exist_ok=True)
    print(f"{len(study.methods)} methods x {len(study.seeds)} seeds x {study.max_steps} steps -> {study.output_dir}")
    run_study(study, num_processes=num_processes, facts=facts(study, num_processes, given))
    page = Path(study.output_dir) / "comparison.md"
    print(page.read_text(encoding="utf-8"))
    print(f"See {page} and {page.parent / 'figures'}")
