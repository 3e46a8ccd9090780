"""Cost of an audit beside the bare forward passes, in one run: `python benchmarks/audit.py` prints JSON.

A ViT-S/16 with random weights at 224 x 224 pixels, once as it is and once with high-norm tokens planted at five places
of its grid, so that the measures that only outliers cause are paid for too. Rounds of both are interleaved; the median
ratio of the rounds counts. `--cpu_time` counts the processor time of all threads instead of the time on the clock,
which a machine shared with others needs.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import torch
from torch import Tensor, nn
from transformers import HfArgumentParser, ViTConfig, ViTModel

from singer_hf.inspection import audit

PLACES = (20, 21, 77, 150, 190)


@dataclass
class Settings:
    batch_size: int = field(default=8, metadata={"help": "Images per batch."})
    num_batches: int = field(default=16, metadata={"help": "Batches per round."})
    rounds: int = field(default=3, metadata={"help": "Timed rounds after one to warm up."})
    threads: int = field(default=2, metadata={"help": "CPU threads."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and images."})
    cpu_time: bool = field(default=False, metadata={"help": "Count processor time instead of the clock's."})
    device: str = field(default="cpu", metadata={"help": "Torch device."})


def build_model(planted: bool) -> nn.Module:
    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    model = ViTModel(config, add_pooling_layer=False).eval()
    if planted:
        with torch.no_grad():
            for place in PLACES:
                model.get_parameter("embeddings.position_embeddings")[0, 1 + place, 7] = 200.0
    return model


def forward_all(model: nn.Module, batches: list[Tensor]) -> None:
    with torch.no_grad():
        for pixel_values in batches:
            model(pixel_values)


def seconds(work: Callable[[], object], settings: Settings) -> float:
    clock = time.process_time if settings.cpu_time else time.perf_counter
    start = clock()
    work()
    if settings.device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def compare(settings: Settings, planted: bool) -> dict[str, float]:
    torch.manual_seed(settings.seed)
    model = build_model(planted).to(settings.device)
    shape = (settings.batch_size, 3, 224, 224)
    batches = [torch.randn(shape, device=settings.device) for _ in range(settings.num_batches)]
    bare, audited = [], []
    for _ in range(settings.rounds + 1):
        bare.append(seconds(lambda: forward_all(model, batches), settings))
        audited.append(seconds(lambda: audit(model, batches, progress=False), settings))
    images = settings.batch_size * settings.num_batches
    ratios = [late / early for early, late in zip(bare[1:], audited[1:], strict=True)]
    return {
        "forward_ms_per_image": 1e3 * statistics.median(bare[1:]) / images,
        "audit_ms_per_image": 1e3 * statistics.median(audited[1:]) / images,
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
    }


def main() -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses()
    torch.set_num_threads(settings.threads)
    report = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {settings.threads} threads, torch {torch.__version__}, {settings.device}",
        "settings": vars(settings),
        "clean": compare(settings, planted=False),
        "planted": compare(settings, planted=True),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
