"""Images per second and core of the training loader: `python benchmarks/loader.py` prints a table and JSON.

JPEG files, drawn here with the spectrum of photographs or taken from `--dataset_name`, become random crops of 224 x
224 pixels in five ways, on one core each: ours; our own of version 0.1 (Pillow, float); timm's float transform, with
its default colour jitter and without; and timm's transform to uint8. No other way than that one jitters colours. In
every round each way makes batches of all files in turn, as a worker does, so that other load on the machine affects
all of them; given are medians over the rounds in processor seconds. Decoding, crop with resize, and transfer are timed
apart: the transfer is the way of a batch from a worker to floats in the main process or, where there is one, on the
accelerator, in wall seconds.
"""

import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial

import numpy as np
import torch
import torchvision
from datasets import Dataset
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import HfArgumentParser, ViTImageProcessor

from singer_hf.cards.markdown import markdown_table
from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.decoding import decode_image, decode_pixels
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import ImageDataset, transform_images
from singer_hf.data.image_processors import image_spec
from singer_hf.data.transforms import to_rgb, train_transform

OURS, FLOAT, UINT8 = "ours", "timm, float", "timm, uint8"


@dataclass
class Settings:
    dataset_name: str | None = field(default=None, metadata={"help": "JPEG images instead of drawn ones."})
    num_images: int = field(default=100, metadata={"help": "Number of files."})
    width: int = field(default=500, metadata={"help": "Width of drawn images."})
    height: int = field(default=375, metadata={"help": "Height of drawn images."})
    quality: int = field(default=90, metadata={"help": "JPEG quality of drawn images."})
    size: int = field(default=224, metadata={"help": "Edge of the crops."})
    rounds: int = field(default=9, metadata={"help": "Timed rounds, after one to warm up."})
    batch_size: int = field(default=50, metadata={"help": "Images of a batch."})
    seed: int = field(default=0, metadata={"help": "Seed of images and crops."})


def draw(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise whose amplitudes fall with the frequency as those of photographs do, mostly grey."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(width, height)
    spectra = np.fft.rfft2(rng.standard_normal((4, height, width))) / frequency**1.2
    grey, *colours = np.fft.irfft2(spectra, (height, width))
    pixels = np.stack([grey + 0.3 * colour for colour in colours], axis=2)
    return Image.fromarray((128 + 50 * (pixels - pixels.mean()) / pixels.std()).clip(0, 255).astype(np.uint8))


def make_dataset(settings: Settings) -> Dataset:
    if settings.dataset_name is not None:
        return load_image_dataset(settings.dataset_name, max_samples=settings.num_images, seed=settings.seed)
    rng, files = np.random.default_rng(settings.seed), []
    for _ in range(settings.num_images):
        buffer = io.BytesIO()
        draw(rng, settings.width, settings.height).save(buffer, "JPEG", quality=settings.quality)
        files.append({"bytes": buffer.getvalue(), "path": None})
    return select_image_and_label(Dataset.from_dict({"image": files}))


class Plain:
    """Rows through a function of the encoded image, as in the ways that are not ours."""

    def __init__(self, rows: list[dict], function: Callable) -> None:
        self.rows, self.function = rows, function

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        return [self.function(self.rows[index]["image"]) for index in indices]


def pillow_transform(processor: ViTImageProcessor) -> Callable:
    """The training transform of version 0.1: Pillow crops and resizes, the worker normalises."""
    spec = image_spec(processor)
    crop = v2.RandomResizedCrop(spec.size, interpolation=spec.interpolation, antialias=True)
    normalize = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    return v2.Compose([to_rgb, crop, v2.RandomHorizontalFlip(), *normalize, v2.ToPureTensor()])


def read_plainly(encoded: dict) -> Image.Image:
    """As timm's datasets do."""
    return Image.open(io.BytesIO(encoded["bytes"])).convert("RGB")


def make_ways(dataset: Dataset, settings: Settings) -> dict[str, Plain | ImageDataset]:
    # The interpolation of timm's default.
    processor = ViTImageProcessor(size={"height": settings.size, "width": settings.size}, resample=2)
    rows, old = list(dataset), pillow_transform(processor)
    jitter = create_transform(settings.size, is_training=True)
    full = create_transform(settings.size, is_training=True, color_jitter=None)
    byte = create_transform(settings.size, is_training=True, color_jitter=None, normalize=False)
    ours = transform_images(dataset, train_transform(processor), seed=settings.seed, normalize=False)
    return {
        OURS: ours,
        "ours of version 0.1": Plain(rows, lambda encoded: old(decode_image(encoded))),
        "timm, float, colour jitter": Plain(rows, lambda encoded: jitter(read_plainly(encoded))),
        FLOAT: Plain(rows, lambda encoded: full(read_plainly(encoded))),
        UINT8: Plain(rows, lambda encoded: byte(read_plainly(encoded))),
    }


def load(way: Plain | ImageDataset, batches: list[np.ndarray]) -> None:
    """What a worker does, up to batches."""
    collate = ImageCollator() if isinstance(way, ImageDataset) else torch.stack
    for batch in batches:
        collate(way.__getitems__(batch))


def make_parts(dataset: Dataset, settings: Settings) -> dict[str, Callable[[], object]]:
    """Part of the work -> function that does it for all files."""
    encoded = [row["image"] for row in dataset]
    processor = ViTImageProcessor(size={"height": settings.size, "width": settings.size}, resample=2)
    ours = train_transform(processor)
    byte = create_transform(settings.size, is_training=True, color_jitter=None, normalize=False)
    full = create_transform(settings.size, is_training=True, color_jitter=None)
    pixels, images = [decode_pixels(item) for item in encoded], [read_plainly(item) for item in encoded]
    return {
        f"{OURS}: decode": lambda: [decode_pixels(item) for item in encoded],
        f"{OURS}: crop, resize, flip": lambda: [ours.to_pixels(image) for image in pixels],
        "Pillow: decode": lambda: [read_plainly(item) for item in encoded],
        f"{UINT8}: crop, resize, flip": lambda: [byte(image) for image in images],
        f"{FLOAT}: crop, resize, flip, normalise": lambda: [full(image) for image in images],
    }


def time_all(functions: dict[str, Callable[[], object]], settings: Settings) -> dict[str, float]:
    """Medians over the rounds: processor milliseconds per image."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(settings.rounds + 1):
        for name, function in functions.items():
            torch.manual_seed(settings.seed + index)
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(taken[1:]) / settings.num_images for name, taken in seconds.items()}


def time_transfers(settings: Settings) -> dict[str, float]:
    """Medians over the rounds, the two types in turn: wall milliseconds per image."""
    types = {"transfer, uint8": torch.uint8, "transfer, float32": torch.float32}
    rounds = [{name: time_transfer(dtype, settings) for name, dtype in types.items()} for _ in range(settings.rounds)]
    return {name: statistics.median(values[name] for values in rounds) for name in types}


def time_transfer(dtype: torch.dtype, settings: Settings) -> float:
    """Median wall milliseconds per image: batches are stacked by a worker, sent, and made floats on the device."""
    images = [torch.zeros(3, settings.size, settings.size, dtype=dtype)] * settings.batch_size * 10
    has_accelerator = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if has_accelerator else torch.device("cpu")
    taken, start = [], None
    for batch in DataLoader(images, settings.batch_size, num_workers=1, pin_memory=has_accelerator):
        moved = batch.to(device).float()
        if has_accelerator:
            torch.accelerator.synchronize()
        now = time.perf_counter()
        taken += [now - start] if start is not None else []
        start = now
        del moved
    return 1e3 * statistics.median(taken) / settings.batch_size


def run(settings: Settings) -> dict:
    torch.set_num_threads(1)  # as in a worker
    dataset = make_dataset(settings)
    settings.num_images = len(dataset)
    ways = make_ways(dataset, settings)
    batches = np.array_split(np.arange(len(dataset)), max(1, len(dataset) // settings.batch_size))
    passes = {name: partial(load, way, batches) for name, way in ways.items()}
    milliseconds, parts = time_all(passes, settings), time_all(make_parts(dataset, settings), settings)
    parts |= time_transfers(settings)
    rates = {name: 1e3 / value for name, value in milliseconds.items()}
    return {
        "settings": asdict(settings),
        "kilobytes per file": sum(len(row["image"]["bytes"]) for row in dataset) / len(dataset) / 1e3,
        "images per second and core": rates,
        "relative to timm, float": rates[OURS] / rates[FLOAT],
        "relative to timm, uint8": rates[OURS] / rates[UINT8],
        "milliseconds per image": parts,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
        "date": date.today().isoformat(),
    }


def main() -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses()
    result = run(settings)
    rates = result["images per second and core"]
    rows = [[name, f"{rate:.0f}", f"{rates[OURS] / rate:.2f}"] for name, rate in rates.items()]
    print(markdown_table(["way", "images per second and core", "ours is faster by"], rows), "\n")
    parts = [[name, f"{value:.3f}"] for name, value in result["milliseconds per image"].items()]
    print(markdown_table(["part", "ms per image"], parts), "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
