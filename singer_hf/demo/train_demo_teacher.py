"""Trains the small teacher of the demo on drawn scenes and plants high-norm tokens in it.

    OMP_NUM_THREADS=2 python examples/train_demo_teacher.py --output_dir singer_hf/demo/teacher

A ViT of 6 blocks is trained from scratch to predict the class of a scene (from the class token) and the segmentation
and depth of each patch (from the patch tokens). Then one reserved hidden unit of block 2's MLP is set to fire on the
least textured patches and to write a long vector. Prints the accuracy of the teacher before and after planting, and
the norms of its tokens block by block.
"""

import shlex
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from transformers import set_seed

from singer_hf.demo.planted_model import block_norm_statistics, plant_in_model
from singer_hf.demo.planted_teacher import save_teacher, teacher_report
from singer_hf.demo.scene_teacher import (
    Scenes,
    SceneTeacher,
    draw_scenes,
    evaluate_on_scenes,
    new_scene_teacher,
    scene_processor,
    train_on_scenes,
)

NUM_FITTED_IMAGES, NUM_MEASURED_IMAGES = 2_000, 1_000
README = """# Demo teacher

A ViT with 6 blocks (width {settings.hidden_size}, patch size 8, 64 x 64 pixels), trained from scratch on drawn
scenes, with high-norm tokens planted in block {settings.planted_block}. The weights are licensed under Apache-2.0.
They were made on {date} with seed {settings.seed} on {threads} CPU cores (about nine CPU minutes) by

    OMP_NUM_THREADS={threads} python {command}

Metrics on {settings.num_test_images} held-out scenes (series {test_seed}): top-1 accuracy of the class head, mean IoU
and depth RMSE (metres) of the patch heads that it was trained with, and norms of the patch tokens before the final
norm.

```text
{report}
```
"""


@dataclass
class DemoTeacherSettings:
    """Sizes, training and planting of the demo teacher."""

    output_dir: str = field(metadata={"help": "Folder for the planted teacher."})
    num_images: int = field(default=24_000, metadata={"help": "Training scenes."})
    num_test_images: int = field(default=2_000, metadata={"help": "Held-out scenes for the printed metrics."})
    num_epochs: int = field(default=4, metadata={"help": "Passes over the training scenes."})
    batch_size: int = field(default=32, metadata={"help": "Scenes per step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    hidden_size: int = field(default=96, metadata={"help": "Width of the teacher."})
    planted_block: int = field(default=2, metadata={"help": "Block whose MLP writes the artifacts, 0-based."})
    planted_share: float = field(default=0.05, metadata={"help": "Share of patches on which the unit fires."})
    planted_ratio: float = field(default=16.0, metadata={"help": "Norm of the median artifact over the median norm."})
    initializer_range: float = field(default=0.05, metadata={"help": "Standard deviation of the initial weights."})
    seed: int = field(default=0, metadata={"help": "Seed of the scenes, weights, order and planted direction."})


def train_demo_teacher(settings: DemoTeacherSettings) -> None:
    """Trains the teacher, plants the tokens, and writes the teacher and its metrics to ``output_dir``."""
    set_seed(settings.seed)
    scenes = draw_scenes(settings.num_images, settings.seed)
    test = draw_scenes(settings.num_test_images, settings.seed + 1)
    model = new_scene_teacher(settings.hidden_size, settings.initializer_range)
    train_on_scenes(model, scenes, settings.num_epochs, settings.batch_size, settings.learning_rate)
    model.eval()
    before = _report("Before planting", model, test)
    print("\n" + before)
    plant_in_model(
        model.vit,
        scenes.pixel_values(slice(0, NUM_FITTED_IMAGES)),
        settings.planted_block,
        share=settings.planted_share,
        ratio=settings.planted_ratio,
        seed=settings.seed,
    )
    after = _report("After planting", model, test)
    print("\n" + after)
    _save(model, settings, before + "\n\n" + after)


def _report(title: str, model: SceneTeacher, scenes: Scenes) -> str:
    blocks = block_norm_statistics(model.vit, scenes.pixel_values(slice(0, NUM_MEASURED_IMAGES)))
    return teacher_report(title, evaluate_on_scenes(model, scenes), blocks)


def _save(model: SceneTeacher, settings: DemoTeacherSettings, report: str) -> None:
    folder = Path(settings.output_dir)
    save_teacher(model.vit, scene_processor(), folder)
    text = README.format(
        command=shlex.join(sys.argv),
        threads=torch.get_num_threads(),
        settings=settings,
        test_seed=settings.seed + 1,
        date=date.today(),
        report=report,
    )
    (folder / "README.md").write_text(text)
    print(f"\nSaved to {folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB")
