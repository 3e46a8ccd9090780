"""Cost of an audit compared with the bare forward passes: `python benchmarks/audit.py` prints JSON.

The model is a ViT-S/16 with random weights at 224 x 224 pixels, once unchanged and once with high-norm tokens at five
grid positions, so that the metrics of outliers are included in the time. Every batch is run by a copy of the model
right before it is audited, so that other load on the machine affects both. Processor time (of all threads) is the more
stable clock on a shared machine. `ratio_with_setup` includes what an audit does once (check of the attention, singular
directions, metrics of all images), so it decreases with the number of images.
"""

import copy
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date

import torch
from torch import Tensor, nn
from transformers import HfArgumentParser, ViTConfig, ViTModel

from singer_hf.inspection.measure.audit import audit

POSITIONS = (20, 21, 77, 150, 190)


@dataclass
class Settings:
    """Settings of the benchmark."""

    batch_size: int = field(default=8, metadata={"help": "Images per batch."})
    num_batches: int = field(default=24, metadata={"help": "Timed batches, after one to warm up."})
    threads: int = field(default=2, metadata={"help": "CPU threads."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and images."})
    device: str = field(default="cpu", metadata={"help": "Torch device."})


def build_model(planted: bool) -> nn.Module:
    """Builds a random ViT-S/16, with large position embeddings at five positions if ``planted``."""
    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    model = ViTModel(config, add_pooling_layer=False).eval()
    if planted:
        with torch.no_grad():
            for position in POSITIONS:
                model.get_parameter("embeddings.position_embeddings")[0, 1 + position, 7] = 200.0
    return model


class Clock:
    """Measures wall and processor seconds between laps."""

    def __init__(self, device: str) -> None:
        self.device, self.last = device, (0.0, 0.0)

    def lap(self) -> tuple[float, float]:
        """Returns wall and processor seconds since the last lap."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        now = (time.perf_counter(), time.process_time())
        passed = (now[0] - self.last[0], now[1] - self.last[1])
        self.last = now
        return passed


def timed_batches(model: nn.Module, settings: Settings, clock: Clock, bare: list, audited: list) -> Iterator[Tensor]:
    """Yields batches for the audit, each after its bare forward pass, and times both."""
    shape = (settings.batch_size, 3, 224, 224)
    for _ in range(settings.num_batches + 1):
        pixel_values = torch.randn(shape, device=settings.device)
        clock.lap()
        with torch.no_grad():
            model(pixel_values)
        bare.append(clock.lap())
        yield pixel_values
        audited.append(clock.lap())


def compare(settings: Settings, planted: bool) -> dict[str, float]:
    """Returns the times of an audit and of the bare passes, and their ratios."""
    torch.manual_seed(settings.seed)
    model, clock = build_model(planted).to(settings.device), Clock(settings.device)
    bare, audited = [], []
    audit(model, timed_batches(copy.deepcopy(model), settings, clock, bare, audited), progress=False)
    finish = clock.lap()
    results = {}
    for number, name in enumerate(("wall", "processor")):
        # The first batch warms up the bare pass; of the audit it includes what is done once.
        before, after = ([lap[number] for lap in laps[1:]] for laps in (bare, audited))
        setup = audited[0][number] - statistics.median(after) + finish[number]
        results[name] = {
            "forward_ms_per_image": 1e3 * statistics.median(before) / settings.batch_size,
            "audit_ms_per_image": 1e3 * statistics.median(after) / settings.batch_size,
            "ratio": statistics.median(late / early for early, late in zip(before, after, strict=True)),
            "setup_ms": 1e3 * setup,
            "ratio_with_setup": (sum(after) + setup) / sum(before),
        }
    return results


def main() -> None:
    """Runs the benchmark and prints the result."""
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses()
    torch.set_num_threads(settings.threads)
    report = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {settings.threads} threads, torch {torch.__version__}, {settings.device}",
        "settings": vars(settings),
        "unplanted": compare(settings, planted=False),
        "planted": compare(settings, planted=True),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
