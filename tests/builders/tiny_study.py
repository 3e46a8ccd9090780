"""A comparison that takes seconds: noisy images, a planted teacher of 4 blocks, a student of 2. All offline."""

import json
from pathlib import Path

import numpy as np
import yaml
from labelled import SIZE, tiny_model, tiny_processor
from PIL import Image

from singer_hf.comparison.study import Study, read_study
from singer_hf.demo.planted_model import plant_in_model, reserve_units

PATCH = 4
GRID = SIZE // PATCH
METHODS = {"fitnet": {}, "singer": {"recipe": "recommended", "r": 4}}
# Dropout, so that a resumed student needs the random state of the checkpoint.
STUDENT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_dropout_prob": 0.1,
}


def make_images(number: int, seed: int) -> list[Image.Image]:
    """Noise whose strength differs from patch to patch, with a touch of red, green and blue in turn: hard to tell."""
    generator, pictures = np.random.default_rng(seed), []
    for i in range(number):
        strength = np.kron(generator.uniform(5, 50, (GRID, GRID)), np.ones((PATCH, PATCH)))
        pixels = 128 + strength[..., None] * generator.normal(size=(SIZE, SIZE, 3))
        pixels[..., i % 3] += 4
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return pictures


def save_images(root: Path, number: int = 24) -> None:
    """An imagefolder of 3 classes with that many images in each of two splits."""
    for seed, split in enumerate(("train", "test")):
        for i, image in enumerate(make_images(number, seed)):
            file = root / split / ("red", "green", "blue")[i % 3] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)


def save_teachers(root: Path) -> None:
    """`unplanted/` and, with outliers behind block 1, `planted/`."""
    model, processor = tiny_model(), tiny_processor()
    reserve_units(model)
    for name in ("unplanted", "planted"):
        if name == "planted":
            plant_in_model(model, processor(make_images(64, seed=2), return_tensors="pt")["pixel_values"], 1)
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)


def write_study(root: Path, *, student_layers: int = 2, **changes: object) -> Path:
    """Writes images, teachers, the student's config and the study's YAML file; the file."""
    save_images(root / "images")
    save_teachers(root)
    (root / "student.json").write_text(json.dumps({**STUDENT, "num_hidden_layers": student_layers}))
    entries = {
        "teacher_name_or_path": str(root / "planted"),
        "clean_teacher_name_or_path": str(root / "unplanted"),
        "student_config": str(root / "student.json"),
        "dataset_name": str(root / "images"),
        "output_dir": str(root / "straight"),
        "seeds": [0, 1],
        "max_steps": 4,
        "num_evaluations": 2,
        "training": {"per_device_train_batch_size": 4},
        "methods": METHODS,
    }
    file = root / "study.yaml"
    file.write_text(yaml.safe_dump({**entries, **changes}, sort_keys=False))
    return file


def tiny_study(file: Path, name: str, **overrides: object) -> Study:
    """The study, with results in a folder of that name beside the file."""
    return read_study(file, output_dir=str(Path(file).parent / name), **overrides)
