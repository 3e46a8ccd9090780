"""A working folder in which the names that README and docs print exist, as tiny stand-ins. All offline."""

import json
import runpy
import shutil
import sys
import tarfile
from pathlib import Path
from unittest import mock

import yaml
from adapters import attach
from datasets import ClassLabel, Dataset, Features
from labelled import half_masks
from printed import ROOT

from singer_hf.configs import COMPARISONS, MODELS, TRAINED, shipped_files
from singer_hf.data.drawn_scenes import draw_scene, scene_dataset
from singer_hf.vit.loading import load_model, model_from_config

# Every large teacher is the demo's (64 x 64 pixels, 8 x 8 patches, 6 blocks, planted artifacts).
TEACHERS = ("facebook/dinov2-large", "facebook/dinov2-base", "outputs/demo_unplanted")
# Students of 4 blocks and width 32: configs (a path wins over the name), and saved ones.
CONFIGS = ("vit-small-patch14", "vit-small-patch16", "vit-tiny-patch16")
SMALL_TEACHER = "vit-6x64-patch4-32px"
STUDENTS = (
    *("facebook/deit-tiny-patch16-224", "outputs/student", "outputs/random_init"),
    *("outputs/demo/fitnet", "outputs/demo/singer"),
)
ADAPTERS = ("outputs/demo/singer/singer", "outputs/cleaned", "outputs/cleaned_0.25")
# Trained for a step on 32 x 32 pixels; each has `unplanted` and `planted`.
TRAINED_HERE = ("teacher_0.25", "teacher_read_0.04", "teacher192", "teacher_dinov2", "natural/mixed", "natural/plain")
COPIES = (
    ("labelled", "path/to/labelled", "path/to/imagefolder"),
    ("data/cifar10", "cifar10", "outputs/natural/mixed/scenes"),
    ("camvid", "path/to/camvid", "data/camvid"),
)
CELLS = ("cifar10_objectives", "cifar10_objectives_0.12", "cifar10_objectives_0.25")
STUDY = {"seeds": [0], "max_steps": 1, "num_evaluations": 0, "num_cost_steps": 0, "max_train_samples": 32}
STUDY |= {"max_probe_samples": 30, "max_test_samples": 10}
TEACHER = ("--dataset_name", "data/cifar10", "--teacher_config", SMALL_TEACHER, "--max_steps", "1")
TEACHER += ("--output_dir", "outputs/teacher", "--per_device_train_batch_size", "8", "--max_test_samples", "8")
QUIET = ("--use_cpu", "--report_to", "none", "--disable_tqdm", "True")


def make_world() -> None:
    """Writes the stand-ins into the working folder."""
    _images()
    teacher = shipped_files(TRAINED)["demo-teacher"]
    for name in TEACHERS:
        _link(name, teacher)
    for name in CONFIGS:
        _link(name, shipped_files(MODELS)["vit-4x32-patch8-64px"])
    _link("vit-small-patch16-224", shipped_files(MODELS)[SMALL_TEACHER])
    student = model_from_config(CONFIGS[0])
    for name in STUDENTS:
        student.save_pretrained(name)
        shutil.copy(teacher / "preprocessor_config.json", name)
    for name in ADAPTERS:
        attach(load_model("demo-teacher", "teacher"), layers_to_transform=[2]).save_pretrained(name)
    run_script("examples/train_teacher.py", [*TEACHER, *QUIET])
    for name in TRAINED_HERE:
        for part in ("planted", "unplanted"):
            _link(f"outputs/{name}/{part}", Path("outputs/teacher", part).absolute())
    _cells()


def run_script(name: str, flags: list[str]) -> None:
    """Runs a script of the repository in this process."""
    with mock.patch.object(sys, "argv", [name, *flags]):
        runpy.run_path(str(ROOT / name), run_name="__main__")


def write_study(name: str) -> None:
    """Writes a comparison of the package with few images and its first method; one keeps its benchmarks."""
    study = yaml.safe_load(shipped_files(COMPARISONS)[name].read_text(encoding="utf-8")) | STUDY
    study["methods"] = dict(list(study["methods"].items())[:1])
    study["baseline"] = next(iter(study["methods"]))
    study["training"]["bf16"] = False
    study["benchmarks"] = study["benchmarks"] if name == "cifar10_objectives" else []
    for entry in study["benchmarks"]:
        entry |= {"max_train_samples": 12, "max_test_samples": 2}
        entry["settings"] |= {"image_size": 32, "num_epochs": 1, "learning_rates": [0.1]}
    Path(name).write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")


def _images() -> None:
    _draw("photos", 63)
    # An audit of norms needs 4,000 patches: 63 images of 64 patches.
    _table("path/to/images/train", scene_dataset(63).select_columns("image"))
    _table("parquet/train", scene_dataset(8).select_columns("image").rename_column("image", "jpg"))
    for number, (split, validation) in enumerate((("train", "train"), ("test", "validation"))):
        for label, name in enumerate(("cat", "dog")):
            _draw(f"labelled/{split}/{name}", 12, 2 * number + label)
        scenes = scene_dataset(80, seed=number, size=32).select_columns("image")
        features = Features(scenes.features | {"label": ClassLabel(10)})
        classes = scenes.add_column("label", [index % 10 for index in range(80)]).cast(features)
        _table(f"data/cifar10/{split}", classes)
        _table(f"timm/mini-imagenet/{validation}", classes)
        _table(f"camvid/{split}", half_masks(12, seed=number))
    for original, *copies in COPIES:
        for name in copies:
            _link(name, Path(original).absolute())
    Path("timm/imagenet-1k-wds").mkdir()
    with tarfile.open("timm/imagenet-1k-wds/train-0000.tar", "w") as archive:
        for index in range(8):
            archive.add(f"photos/{index}.jpg", f"{index}.jpg")


def _table(name: str, rows: Dataset) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(f"{name}.parquet")


def _draw(folder: str, number: int, seed: int = 0) -> None:
    Path(folder).mkdir(parents=True)
    for index in range(number):
        draw_scene(index, seed).image.save(f"{folder}/{index}.jpg")


def _link(name: str, target: Path) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(target)


def _cells() -> None:
    """Results of comparisons, for the script that draws them."""
    for folder in CELLS:
        for method in ("fitnet", "singer", "neighbor", "unplanted_fitnet"):
            file = Path("outputs/compare", folder, "cells", method, "seed0/result.json")
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"metrics": {"probe_cls": 0.5, "knn": 0.4}}))
    Path("docs/results").mkdir(parents=True)
