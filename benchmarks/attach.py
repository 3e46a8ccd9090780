"""Cost of attaching an adapter to a teacher of ViT-L size: `python benchmarks/attach.py` prints JSON.

A randomly initialised ViT (width 1024, 24 blocks) gets an adapter after two blocks, once for each null-space source.
Times are medians over the repeats: wall-clock seconds, and processor seconds over all threads (less affected by other
load on the machine). Memory in MB: the largest peak of the process above its memory before (Linux only; it includes
the workspace of the eigendecomposition), and the adapter's parameters, which are kept.
"""

import json
import platform
import statistics
import time
import warnings
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn
from transformers import HfArgumentParser, ViTConfig, ViTModel

from singer_hf import SingerConfig


@dataclass
class Settings:
    hidden_size: int = field(default=1024, metadata={"help": "Width of the teacher."})
    num_blocks: int = field(default=24, metadata={"help": "Depth of the teacher."})
    r: int = field(default=64, metadata={"help": "Rank of the adapter."})
    repeats: int = field(default=3, metadata={"help": "Timed attachments for each source, after one to warm up."})
    threads: int = field(default=2, metadata={"help": "CPU threads."})
    seed: int = field(default=0, metadata={"help": "Seed of the teacher's weights."})


def build_teacher(settings: Settings) -> nn.Module:
    torch.manual_seed(settings.seed)
    config = ViTConfig(
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_blocks,
        num_attention_heads=settings.hidden_size // 64,
        intermediate_size=4 * settings.hidden_size,
    )
    return ViTModel(config, add_pooling_layer=False)


def memory(key: str) -> float:
    """Memory of the process in MB, from the line of its status that starts with `key`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def attach_once(teacher: nn.Module, source: str, r: int) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start, start_cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    peft_teacher = get_peft_model(teacher, SingerConfig(r=r, nullspace_source=source))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak = memory("VmHWM") - before
    layers = peft_teacher.base_model.singer_layers.values()
    kept = sum(parameter.nbytes for layer in layers for parameter in layer.adapter_parameters())
    peft_teacher.unload()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "kept_mb": kept / 2**20}


def main() -> None:
    settings = HfArgumentParser(Settings).parse_args_into_dataclasses()[0]
    torch.set_num_threads(settings.threads)
    warnings.filterwarnings("ignore", message=".*effective null dimension")  # random weights have no null space
    teacher = build_teacher(settings)
    report = {"date": date.today().isoformat(), "machine": platform.machine(), "torch": torch.__version__}
    report |= vars(settings) | {"dxd_float64_mb": settings.hidden_size**2 * 8 / 2**20}
    for source in ("mlp", "block"):
        runs = [attach_once(teacher, source, settings.r) for _ in range(settings.repeats + 1)]
        report[source] = {key: round(statistics.median(run[key] for run in runs[1:]), 2) for key in runs[0]}
        report[source]["peak_mb"] = round(max(run["peak_mb"] for run in runs), 2)  # later runs reuse freed pages
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
