"""Trains the small teacher of the demo on drawn scenes and plants high-norm tokens in it.

    OMP_NUM_THREADS=2 python examples/train_demo_teacher.py --output_dir examples/demo_teacher

A ViT of 6 blocks learns from scratch the class of a scene (class token) and the segmentation and depth of each patch
(patch tokens). Then one unused hidden unit of block 2's MLP is made to fire on the least textured patches and to write
a long vector. Prints what the teacher knows before and after, and the norms of its tokens block by block.
"""

import shlex
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import HfArgumentParser, ViTConfig, ViTImageProcessor, ViTModel, set_seed

from singer_hf.artifacts.planted_model import block_norm_statistics, norm_lines, plant_in_model, reserve_units
from singer_hf.data.drawn_scenes import CLASS_NAMES, SEGMENT_NAMES, draw_scene

IMAGE_SIZE, PATCH_SIZE, CELLS = 64, 8, 4  # dense targets: CELLS x CELLS per patch
README = """# Demo teacher

A ViT with 6 blocks (width {settings.hidden_size}, patch size 8, 64 x 64 pixels), trained from scratch on drawn
scenes, with high-norm tokens planted in block {settings.planted_block}. The weights are licensed under Apache-2.0.
They were made on {date} with seed {settings.seed} on {threads} CPU cores (about nine CPU minutes) by

    OMP_NUM_THREADS={threads} python {command}

Metrics on {settings.num_test_images} held-out scenes (series {test_seed}): top-1 accuracy of the class head, mean IoU
and depth RMSE (metres) of the patch heads that it was trained with, and norms of the patch tokens before the final
norm.

```text
{figures}
```
"""


@dataclass
class Settings:
    output_dir: str = field(metadata={"help": "Folder for the planted teacher."})
    num_images: int = field(default=24_000, metadata={"help": "Training scenes."})
    num_test_images: int = field(default=2_000, metadata={"help": "Held-out scenes for the printed figures."})
    num_epochs: int = field(default=4, metadata={"help": "Passes over the training scenes."})
    batch_size: int = field(default=32, metadata={"help": "Scenes a step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    hidden_size: int = field(default=96, metadata={"help": "Width of the teacher."})
    planted_block: int = field(default=2, metadata={"help": "Block whose MLP writes the artifacts, 0-based."})
    planted_share: float = field(default=0.05, metadata={"help": "Share of patches on which the unit fires."})
    planted_ratio: float = field(default=16.0, metadata={"help": "Norm of the median artifact over the median norm."})
    initializer_range: float = field(default=0.05, metadata={"help": "Standard deviation of the initial weights."})
    seed: int = field(default=0, metadata={"help": "Seed of the scenes, weights, order and planted direction."})


@dataclass
class Scenes:
    """Pixels (M, 3, 64, 64) uint8, labels (M,), and per patch cell segments and log depth (M, 32, 32)."""

    pixels: Tensor
    labels: Tensor
    segments: Tensor
    log_depth: Tensor

    def pixel_values(self, index: slice | Tensor) -> Tensor:
        return self.pixels[index].float().div(127.5).sub(1.0)  # the processor's mean and std of 0.5


class TeacherWithHeads(nn.Module):
    """The teacher and the heads it is trained with; only the teacher is saved."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, len(CLASS_NAMES))
        self.dense = nn.Linear(config.hidden_size, (len(SEGMENT_NAMES) + 1) * CELLS**2)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, K), segment logits (B, S, 32, 32) and log depth (B, 32, 32)."""
        tokens = self.vit(pixel_values).last_hidden_state
        side = IMAGE_SIZE // PATCH_SIZE
        maps = F.pixel_shuffle(self.dense(tokens[:, 1:]).mT.unflatten(2, (side, side)), CELLS)
        return self.classifier(tokens[:, 0]), maps[:, :-1], maps[:, -1]


def draw(num_images: int, seed: int) -> Scenes:
    stride = PATCH_SIZE // CELLS
    columns = ([], [], [], [])
    for index in tqdm(range(num_images), desc="drawing scenes"):
        scene = draw_scene(index, seed, IMAGE_SIZE)
        columns[0].append(torch.frombuffer(bytearray(scene.image.tobytes()), dtype=torch.uint8))
        columns[1].append(scene.label)
        columns[2].append(torch.from_numpy(scene.mask[::stride, ::stride].copy()))
        columns[3].append(torch.from_numpy(scene.depth[::stride, ::stride].copy()).log())
    pixels = torch.stack(columns[0]).view(-1, IMAGE_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2).contiguous()
    return Scenes(pixels, torch.tensor(columns[1]), torch.stack(columns[2]), torch.stack(columns[3]))


def build_model(settings: Settings) -> TeacherWithHeads:
    config = ViTConfig(
        hidden_size=settings.hidden_size,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=4 * settings.hidden_size + 1,  # the last unit of each block stays free
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        initializer_range=settings.initializer_range,
    )
    model = TeacherWithHeads(config)
    reserve_units(model.vit)
    return model


def training_loss(model: TeacherWithHeads, scenes: Scenes, index: Tensor) -> Tensor:
    batch = [scenes.pixel_values(index), scenes.segments[index].long(), scenes.log_depth[index]]
    if torch.rand(()) < 0.5:
        batch = [tensor.flip(-1) for tensor in batch]
    pixel_values, segments, log_depth = batch
    logits, segment_logits, depth = model(pixel_values)
    return (
        F.cross_entropy(logits, scenes.labels[index], label_smoothing=0.05)
        + F.cross_entropy(segment_logits, segments)
        + F.l1_loss(depth, log_depth)
    )


def train(model: TeacherWithHeads, scenes: Scenes, settings: Settings) -> None:
    steps = len(scenes.labels) // settings.batch_size * settings.num_epochs
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    with tqdm(total=steps, desc="training the teacher") as bar:
        for _ in range(settings.num_epochs):
            order = torch.randperm(len(scenes.labels))
            for index in order[: len(order) // settings.batch_size * settings.batch_size].split(settings.batch_size):
                loss = training_loss(model, scenes, index)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def evaluate(model: TeacherWithHeads, scenes: Scenes) -> dict[str, float]:
    """Top-1 accuracy, mean IoU over the whole set, and depth RMSE in metres, all at the heads' resolution."""
    model.eval()
    confusion, hits, squares = torch.zeros(len(SEGMENT_NAMES), len(SEGMENT_NAMES)), 0, 0.0
    for start in range(0, len(scenes.labels), 250):
        index = slice(start, start + 250)
        logits, segment_logits, depth = model(scenes.pixel_values(index))
        hits += (logits.argmax(1) == scenes.labels[index]).sum().item()
        squares += (depth.exp() - scenes.log_depth[index].exp()).square().mean((1, 2)).sum().item()
        pairs = scenes.segments[index].long() * len(SEGMENT_NAMES) + segment_logits.argmax(1)
        confusion += torch.bincount(pairs.flatten(), minlength=confusion.numel()).view_as(confusion)
    overlap = confusion.diag() / (confusion.sum(0) + confusion.sum(1) - confusion.diag())
    count = len(scenes.labels)
    return {"top1": hits / count, "mean_iou": overlap.mean().item(), "depth_rmse": (squares / count) ** 0.5}


def block_norms(model: TeacherWithHeads, scenes: Scenes) -> list[dict[str, float]]:
    return block_norm_statistics(model.vit, scenes.pixel_values(slice(0, 1_000)))


def plant(model: TeacherWithHeads, scenes: Scenes, settings: Settings) -> None:
    plant_in_model(
        model.vit,
        scenes.pixel_values(slice(0, 2_000)),
        settings.planted_block,
        share=settings.planted_share,
        ratio=settings.planted_ratio,
        seed=settings.seed,
    )


def report(title: str, quality: dict[str, float], norms: list[dict[str, float]]) -> str:
    lines = [f"{title}: " + ", ".join(f"{name} {value:.4f}" for name, value in quality.items())]
    lines += norm_lines(norms)
    return "\n".join(lines)


def save(model: TeacherWithHeads, settings: Settings, figures: str) -> None:
    folder = Path(settings.output_dir)
    model.vit.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)
    text = README.format(
        command=shlex.join(sys.argv),
        threads=torch.get_num_threads(),
        settings=settings,
        test_seed=settings.seed + 1,
        date=date.today(),
        figures=figures,
    )
    (folder / "README.md").write_text(text)
    print(f"\nSaved to {folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB")


def main() -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses()
    set_seed(settings.seed)
    scenes, test = draw(settings.num_images, settings.seed), draw(settings.num_test_images, settings.seed + 1)
    model = build_model(settings)
    train(model, scenes, settings)
    before = report("Before planting", evaluate(model, test), block_norms(model, test))
    print("\n" + before)
    plant(model, scenes, settings)
    after = report("After planting", evaluate(model, test), block_norms(model, test))
    print("\n" + after)
    save(model, settings, before + "\n\n" + after)


if __name__ == "__main__":
    main()
