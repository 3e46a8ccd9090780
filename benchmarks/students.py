"""Measures what a step for three students costs beside the teacher's pass and the three bare student steps; JSON.

    python benchmarks/students.py

Teacher ViT-B/16; students ViT-S/16, ViT-T/16 and ResNet-18 with random weights, which do not affect the cost. Every
round times all parts one after the other. `group_to_bare_parts` is a step of all three in one run divided by the sum
of the teacher's pass and the three bare steps; `group_to_single_runs` divides it by the steps of three runs of one
student each. `--clock processor` counts processor time, which other load on the machine changes less.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import torch
from peft import get_peft_model
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel, set_seed

import singer_hf
from singer_hf import SingerConfig, SingerDistiller
from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.distillation.student_group import StudentGroup

# hidden size, blocks, heads
SIZES = {"vit-tiny": (192, 12, 3), "vit-small": (384, 12, 6), "vit-base": (768, 12, 12)}


@dataclass
class Settings:
    teacher: str = field(default="vit-base", metadata={"help": f"One of {', '.join(SIZES)}."})
    batch_size: int = field(default=8, metadata={"help": "Images of 224 x 224 pixels per step."})
    rounds: int = field(default=10, metadata={"help": "Measured rounds."})
    warmup: int = field(default=2, metadata={"help": "Unmeasured rounds before them."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; torch's default."})
    clock: str = field(default="wall", metadata={"help": "wall, or processor: seconds of all threads."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and images."})


def vit(name: str) -> ViTModel:
    width, blocks, heads = SIZES[name]
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    return ViTModel(ViTConfig(**sizes, intermediate_size=4 * width), add_pooling_layer=False)


def students() -> dict[str, PreTrainedModel]:
    resnet = ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    return {"small": vit("vit-small"), "tiny": vit("vit-tiny"), "cnn": ResNetModel(resnet)}


def group(teacher: nn.Module) -> StudentGroup:
    members: dict[str, SingerDistiller] = {}
    for name, student in students().items():
        shared = next((member.teacher_input for member in members.values()), None)
        members[name] = SingerDistiller(student, teacher, image_size=(224, 224), teacher_input=shared)
    return StudentGroup(members)


def step(module: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def run() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def parts(settings: Settings) -> dict[str, Callable[[], None]]:
    """Name -> measured call."""
    images = torch.randn(settings.batch_size, 3, 224, 224)
    bare = vit(settings.teacher).eval()

    def teacher() -> None:
        with torch.no_grad():
            bare(images)

    calls = {"teacher": teacher}
    for name, student in students().items():
        student.train()
        calls[f"{name}, bare"] = step(student, lambda s=student: s(images).last_hidden_state.square().mean())
    for name, student in students().items():
        distiller = SingerDistiller(student, adapted(settings), image_size=(224, 224)).train()
        calls[f"{name}, alone"] = step(distiller, lambda d=distiller: d(images).loss)
    for name, shared in (("three, SiNGER", adapted(settings)), ("three, FitNet", vit(settings.teacher))):
        whole = group(shared).train()
        calls[name] = step(whole, lambda g=whole: g(images).loss)
    return calls


def adapted(settings: Settings) -> nn.Module:
    return get_peft_model(vit(settings.teacher), SingerConfig())


def measure(settings: Settings) -> dict[str, float]:
    now = time.process_time if settings.clock == "processor" else time.perf_counter
    calls = parts(settings)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(settings.warmup + settings.rounds), "rounds"):
        for name, call in calls.items():
            start = now()
            call()
            if number >= settings.warmup:
                times[name].append(now() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@one_line_errors()
def main() -> None:
    (settings,) = CommandParser(Settings).parse(sys.argv[1:])
    if settings.threads:
        torch.set_num_threads(settings.threads)
    set_seed(settings.seed)
    times = measure(settings)
    bare = times["teacher"] + sum(value for name, value in times.items() if name.endswith("bare"))
    alone = sum(value for name, value in times.items() if name.endswith("alone"))
    result = {
        "settings": vars(settings) | {"threads": torch.get_num_threads()},
        "milliseconds": {name: round(1000 * value, 1) for name, value in times.items()},
        "group_to_bare_parts": round(times["three, SiNGER"] / bare, 3),
        "fitnet_group_to_bare_parts": round(times["three, FitNet"] / bare, 3),
        "group_to_single_runs": round(times["three, SiNGER"] / alone, 3),
        "versions": {"singer_hf": singer_hf.__version__, "torch": torch.__version__},
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
