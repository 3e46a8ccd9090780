"""Measures the cost of a distillation step relative to its parts and prints it as JSON.

    python examples/benchmark.py
    python examples/benchmark.py --teacher vit-large --student vit-tiny --batch_size 256 --precision bf16 --compile

The models have random weights, which do not affect the cost. Every round times all parts one after the other, so that
other load on the machine affects all of them. The printed values are medians over the rounds: `singer_to_fitnet` is
the time of a SiNGER step divided by that of a FitNet step, `singer_to_bare_parts` divides it by the sum of the bare
parts (the teacher's forward pass and a training step of the student alone), `images_per_second` is for a SiNGER step.
`--clock processor` counts processor time instead, which other load on a CPU changes less.
With `--info_share 0.25` a second SiNGER step that takes L_info of a quarter of the images is timed (`singer_share`).
"""

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import date

import torch
from peft import get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model, PreTrainedModel, ViTConfig, ViTModel, set_seed

import singer_hf
from singer_hf import SingerConfig, SingerDistiller
from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.vit.running_statistics import NUM_SETTLING_BATCHES, SettlingStatistics, settle_statistics

# hidden size, blocks, heads
SIZES = {
    **{"vit-tiny": (192, 12, 3), "vit-small": (384, 12, 6), "vit-base": (768, 12, 12), "vit-large": (1024, 24, 16)},
    **{"dinov2-small": (384, 12, 6), "dinov2-large": (1024, 24, 16), "vit-mini": (64, 2, 2)},
}


@dataclass
class Settings:
    teacher: str = field(default="vit-small", metadata={"help": f"One of {', '.join(SIZES)}."})
    student: str = field(default="vit-tiny", metadata={"help": f"One of {', '.join(SIZES)}."})
    image_size: int = field(default=224, metadata={"help": "Side of the images in pixels."})
    patch_size: int = field(default=16, metadata={"help": "Side of a patch in pixels."})
    batch_size: int = field(default=8, metadata={"help": "Images per step."})
    info_share: float = field(default=1.0, metadata={"help": "Share of the images of L_info; below 1 both are timed."})
    r: int = field(default=64, metadata={"aliases": ["--rank"], "help": "Rank of the adapter."})
    rounds: int = field(default=15, metadata={"help": "Measured rounds."})
    warmup: int = field(default=3, metadata={"help": "Unmeasured rounds before them."})
    precision: str = field(default="fp32", metadata={"help": "fp32, or bf16 with autocast."})
    compile: bool = field(default=False, metadata={"help": "torch.compile the measured modules."})
    device: str = field(
        default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "cpu or cuda."}
    )
    threads: int | None = field(default=None, metadata={"help": "CPU threads; torch's default."})
    clock: str = field(default="wall", metadata={"help": "wall, or processor: seconds of all threads, on a busy CPU."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and images."})

    def __post_init__(self) -> None:
        choices = {"teacher": SIZES, "student": SIZES, "precision": ("fp32", "bf16"), "clock": ("wall", "processor")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`--{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 < self.info_share <= 1:
            raise ValueError(f"`--info_share` must lie in (0, 1], got {self.info_share!r}")
        for name in ("image_size", "patch_size", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {getattr(self, name)!r}")


def build_vit(name: str, settings: Settings) -> PreTrainedModel:
    width, blocks, heads = SIZES[name]
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    sizes |= {"image_size": settings.image_size, "patch_size": settings.patch_size}
    if name.startswith("dinov2"):
        return Dinov2Model(Dinov2Config(**sizes)).to(settings.device)
    return ViTModel(ViTConfig(**sizes, intermediate_size=4 * width), add_pooling_layer=False).to(settings.device)


def build_distiller(settings: Settings, singer: bool, info_share: float = 1.0) -> SingerDistiller:
    teacher = build_vit(settings.teacher, settings)
    if singer:
        teacher = get_peft_model(teacher, SingerConfig(r=settings.r))
    student = build_vit(settings.student, settings)
    return SingerDistiller(student, teacher, info_share=info_share).to(settings.device).train()


def parts(settings: Settings, stack: ExitStack) -> dict[str, Callable[[], None]]:
    """Name -> measured call: teacher forward pass, student training step, FitNet step, SiNGER steps.

    The hooks of the distillers stay attached until `stack` ends, as in the trainer; hooks that come and go would
    break a compiled graph.
    """
    compiled = torch.compile if settings.compile else lambda module: module
    images = torch.randn(settings.batch_size, 3, settings.image_size, settings.image_size, device=settings.device)
    teacher, student = build_vit(settings.teacher, settings).eval(), build_vit(settings.student, settings).train()
    distillers = {"fitnet": build_distiller(settings, singer=False), "singer": build_distiller(settings, singer=True)}
    if settings.info_share < 1:
        distillers["singer_share"] = build_distiller(settings, singer=True, info_share=settings.info_share)
    for distiller in distillers.values():
        stack.enter_context(distiller.attached())
        settle(distiller, images)
    run_teacher, run_student = compiled(teacher), compiled(student)

    def teacher_forward() -> None:
        with torch.no_grad(), autocast(settings):
            run_teacher(images)

    def bare(module: nn.Module) -> torch.Tensor:
        return module(images).last_hidden_state.float().square().mean()

    steps = {"student": step(student, lambda: bare(run_student), settings)}
    for name, distiller in distillers.items():
        run = compiled(distiller)
        steps[name] = step(distiller, lambda run=run: run(images).loss, settings)
    return {"teacher_forward": teacher_forward} | {f"{name}_step": call for name, call in steps.items()}


def settle(distiller: SingerDistiller, images: torch.Tensor) -> None:
    """Fixes the statistics of gates and targets, as they are after the first 100 batches of a training."""
    distiller(images)
    for part in distiller.modules():
        if isinstance(part, SettlingStatistics):
            part.num_batches.fill_(NUM_SETTLING_BATCHES)
    settle_statistics(distiller)


def step(module: nn.Module, loss: Callable[[], torch.Tensor], settings: Settings) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def run() -> None:
        with autocast(settings):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def autocast(settings: Settings) -> AbstractContextManager:
    if settings.precision == "fp32":
        return nullcontext()
    return torch.autocast(settings.device, torch.bfloat16)


def seconds(call: Callable[[], None], device: str, clock: str = "wall") -> float:
    now = time.process_time if clock == "processor" else time.perf_counter
    start = now()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def measure(settings: Settings) -> tuple[dict[str, float], dict[str, float]]:
    with ExitStack() as stack:
        times, memory = time_calls(parts(settings, stack), settings)
    if settings.device == "cpu":  # on a CPU only the peak of the whole process is known
        memory = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}
    return {name: statistics.median(values) for name, values in times.items()}, memory


def time_calls(
    calls: dict[str, Callable[[], None]], settings: Settings
) -> tuple[dict[str, list[float]], dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    memory = {}
    for round_index in range(settings.warmup + settings.rounds):
        for name, call in calls.items():
            if settings.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            duration = seconds(call, settings.device, settings.clock)
            if settings.device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**20
            if round_index >= settings.warmup:
                times[name].append(duration)
    return times, memory


def flop_use(settings: Settings, step_seconds: float, teacher_seconds: float) -> dict[str, float]:
    """FLOP/s of a SiNGER step, of the teacher's pass and of a large matrix product in the same precision; ratios."""
    distiller, teacher = build_distiller(settings, singer=True), build_vit(settings.teacher, settings).eval()
    images = torch.randn(settings.batch_size, 3, settings.image_size, settings.image_size, device=settings.device)
    with FlopCounterMode(display=False) as of_step, autocast(settings):
        distiller(images).loss.backward()
    with FlopCounterMode(display=False) as of_teacher, autocast(settings), torch.no_grad():
        teacher(images)
    size = 8192 if settings.device == "cuda" else 1024
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=settings.device, dtype=dtype) for _ in range(2))
    peak = 2 * size**3 / statistics.median(seconds(lambda: a @ b, settings.device) for _ in range(20))
    step, forward = of_step.get_total_flops() / step_seconds, of_teacher.get_total_flops() / teacher_seconds
    rates = {"step_tflop_per_s": step, "teacher_tflop_per_s": forward, "matmul_tflop_per_s": peak}
    use = {"flop_use": step / peak, "teacher_flop_use": forward / peak}
    return {name: value / 1e12 for name, value in rates.items()} | use


@one_line_errors()
def main() -> None:
    (settings,) = CommandParser(Settings).parse(sys.argv[1:])
    if settings.threads:
        torch.set_num_threads(settings.threads)
    set_seed(settings.seed)
    times, memory = measure(settings)
    bare = times["teacher_forward"] + times["student_step"]
    use = flop_use(settings, times["singer_step"], times["teacher_forward"])
    result = {
        "settings": vars(settings) | {"threads": torch.get_num_threads()},
        "milliseconds": {name: round(1000 * value, 2) for name, value in times.items()},
        "singer_to_fitnet": round(times["singer_step"] / times["fitnet_step"], 4),
        "singer_to_bare_parts": round(times["singer_step"] / bare, 4),
        **{
            f"singer_share_to_{name}": round(times["singer_share_step"] / other, 4)
            for name, other in (("fitnet", times["fitnet_step"]), ("bare_parts", bare))
            if settings.info_share < 1
        },
        "fitnet_to_bare_parts": round(times["fitnet_step"] / bare, 4),
        "images_per_second": round(settings.batch_size / times["singer_step"], 2),
        "peak_memory_mib": {name: round(value, 1) for name, value in memory.items()},
        "flops": {name: round(value, 4) for name, value in use.items()},
        "versions": {"singer_hf": singer_hf.__version__, "torch": torch.__version__},
        "machine": torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or "cpu",
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
