"""Runs the measurements of `gpu.sh` one after the other until the time is used up, the most important ones first.

Every measurement is a process of its own: one that fails or takes too long costs nothing but itself, and what it
printed last stands in its place in gpu.json. The files are written anew after every measurement.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
from loader import draw
from transformers import AutoModel, PreTrainedModel, ViTConfig, ViTImageProcessor, ViTModel

import singer_hf
from singer_hf.cards.markdown import markdown_table
from singer_hf.commands.command_line import CommandParser, one_line_errors

PAIRS = {"vit-large": ("vit-tiny", 16), "dinov2-large": ("vit-small", 14)}
SMALL_PAIRS = {"vit-mini": ("vit-mini", 16)}
FIRST, OTHERS = (256,), (64, 128, 512)  # batches; the first says most


@dataclass
class Settings:
    output_dir: str = field(default="outputs/gpu", metadata={"help": "Folder of gpu.json and gpu.md."})
    minutes: float = field(default=9.5, metadata={"help": "No measurement begins after this time."})
    small: bool = field(default=False, metadata={"help": "Tiny models and few images, on any machine."})
    num_images: int = field(default=1200, metadata={"help": "Drawn JPEG files of 500 x 375 pixels."})


@dataclass
class Runs:
    """The measurements so far.

    Attributes:
        settings: The settings.
        results: What each measurement gave, by name.
    """

    settings: Settings
    results: dict[str, dict] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float:
        return 60 * self.settings.minutes - (time.monotonic() - self.started)

    def run(self, name: str, command: list[str], limit: float) -> str:
        """Runs a command and keeps its wall seconds; returns what it printed, empty if it failed."""
        if self.seconds_left() < min(limit, 20):
            self.results[name] = {"skipped": "no time left"}
            return ""
        print(f"{name} ...", file=sys.stderr, flush=True)
        start, limit = time.monotonic(), min(limit, self.seconds_left())
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            self.results[name] = {"skipped": f"took more than {limit:.0f} s"}
            return ""
        self.results[name] = {"seconds": round(time.monotonic() - start, 1)}
        if done.returncode:
            self.results[name]["failed"] = (done.stderr or done.stdout).strip().splitlines()[-1:]
            return ""
        return done.stdout

    def write(self) -> None:
        folder = Path(self.settings.output_dir)
        facts = {"machine": machine(), "versions": versions(), "date": date.today().isoformat()}
        text = json.dumps(facts | {"results": self.results}, indent=2)
        (folder / "gpu.json").write_text(text + "\n", encoding="utf-8")
        (folder / "gpu.md").write_text(step_table(self.results) + "\n\n" + other_lines(self.results), encoding="utf-8")


def machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"


def versions() -> dict[str, str]:
    return {"singer_hf": singer_hf.__version__, "torch": torch.__version__}


def measure_steps(runs: Runs, batches: tuple[int, ...]) -> None:
    """Eager and compiled steps of both pairs. Compilation takes minutes, so it has the longer limit."""
    for batch in batches:
        for compiled, limit in ((False, 120), (True, 300)):
            for teacher, (student, patch) in (SMALL_PAIRS if runs.settings.small else PAIRS).items():
                name = f"step: {teacher} -> {student}, batch {batch}, {'compiled' if compiled else 'eager'}"
                flags = [f"--teacher={teacher}", f"--student={student}", f"--patch_size={patch}", "--precision=bf16"]
                flags += [f"--batch_size={batch}", "--rounds=6", "--warmup=3", "--info_share=0.25"]
                flags += (["--image_size=64", "--r=8"] if runs.settings.small else []) + ["--compile"] * compiled
                printed = runs.run(name, [sys.executable, "examples/benchmark.py", *flags], limit)
                if printed:
                    runs.results[name] |= json.loads(printed)
                runs.write()


def measure_tests(runs: Runs) -> None:
    printed = runs.run(
        "tests", [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/vit", "tests/tuner", "tests/training"], 120
    )
    if printed:
        runs.results["tests"]["summary"] = printed.strip().splitlines()[-1]


def measure_commands(runs: Runs, folder: Path) -> None:
    """A dry run with images from files, an audit and a probe, by the commands themselves."""
    settings = runs.settings
    teacher, images = str(folder / "teacher"), str(folder / "images")
    hardware = [] if torch.cuda.is_available() else ["--use_cpu"]
    batch, number = ("4", "16") if settings.small else ("128", "512")
    program = [sys.executable, "-m", "singer_hf"]
    shared = ["--dataset_name", images]
    flags = ["--teacher_name_or_path", teacher, "--student_config", str(folder / "student.json"), "--dry_run"]
    flags += ["--output_dir", str(folder / "run"), "--per_device_train_batch_size", batch, "--report_to", "none"]
    flags += ["--max_steps", "1000", "--num_audit_images", number, *hardware]
    flags += [] if settings.small else ["--bf16"]
    printed = runs.run("dry run", [*program, "distill", *flags, *shared], 180)
    outlook = [line for line in printed.splitlines() if re.match("Outlook|At most|The loader", line)]
    runs.results["dry run"] |= {"outlook": outlook} if outlook else {}
    flags = ["--model_name_or_path", teacher, "--max_samples", number, "--output_dir", str(folder / "audit")]
    runs.run(f"audit of {number} images", [*program, "audit", *flags, *shared], 120)
    flags = ["--model_name_or_path", teacher, "--task", "knn", "--output_dir", str(folder / "evaluation")]
    flags += ["--train_split", "train", "--test_split", "train"]
    runs.run("kNN probe", [*program, "evaluate", *flags, *shared], 120)


def prepare(settings: Settings) -> Path:
    """Draws labelled JPEG files, and writes a teacher with random weights and a student's config."""
    folder, rng = Path(settings.output_dir) / "work", np.random.default_rng(0)
    number, size = (40, (80, 60)) if settings.small else (settings.num_images, (500, 375))
    for index in range(number):
        file = folder / "images" / "train" / "ab"[index % 2] / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            draw(rng, *size).save(file, quality=90)
    teacher, student = models(settings.small)
    side = teacher.config.image_size
    teacher.save_pretrained(folder / "teacher")
    ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder / "teacher")
    student.config.to_json_file(folder / "student.json")
    return folder


def models(small: bool) -> tuple[PreTrainedModel, PreTrainedModel]:
    torch.manual_seed(0)
    if small:
        tiny = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
        config = ViTConfig(**tiny, image_size=64, patch_size=8)
        return ViTModel(config, add_pooling_layer=False), ViTModel(config, add_pooling_layer=False)
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    tiny = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        teacher = ViTModel(ViTConfig(**large), add_pooling_layer=False)
    return teacher, AutoModel.from_config(ViTConfig(**tiny))


def step_table(results: dict[str, dict]) -> str:
    header = [
        "step",
        "images/s",
        "to FitNet",
        "to FitNet, L_info of 1/4",
        "to bare parts",
        "peak GiB",
        "teacher FLOP use",
    ]
    rows = []
    for name, result in results.items():
        if not name.startswith("step: "):
            continue
        if "milliseconds" not in result:
            rows.append([name.removeprefix("step: "), result.get("skipped") or "failed", *([""] * 5)])
            continue
        values = [
            f"{result[key]:.3f}" for key in ("singer_to_fitnet", "singer_share_to_fitnet", "singer_to_bare_parts")
        ]
        peak = max(result["peak_memory_mib"].values()) / 1024
        use = f"{result['flops']['teacher_flop_use']:.2f}"
        rows.append([name.removeprefix("step: "), f"{result['images_per_second']:.0f}", *values, f"{peak:.1f}", use])
    return markdown_table(header, rows)


def other_lines(results: dict[str, dict]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in results.items() if not name.startswith("step: "))


@one_line_errors()
def main() -> None:
    (settings,) = CommandParser(Settings).parse(sys.argv[1:])
    if not (torch.cuda.is_available() or settings.small):
        raise ValueError("this machine has no GPU that torch can use; `--small` tries everything with tiny models")
    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    runs = Runs(settings)
    folder = prepare(settings)
    measure_tests(runs)
    measure_steps(runs, (2,) if settings.small else FIRST)
    measure_commands(runs, folder)
    measure_steps(runs, () if settings.small else OTHERS)
    runs.write()
    print((Path(settings.output_dir) / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
