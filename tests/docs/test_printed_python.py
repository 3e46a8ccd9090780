"""Every Python block of README and docs runs, page by page from the first block to the last.

Folders with the printed names stand for what would be downloaded: a tiny teacher with two artifacts in every image, a
student, images. Runs end after two steps on the CPU.
"""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import attach
from cleanings import lasting_vit, planted_processor, saved_teacher
from peft import PeftModel
from PIL import Image
from planted import GRID, IMAGE, PATCH, planted_images
from printed import PAGES, ROOT, python_blocks
from transformers import AutoModel, TrainingArguments

from singer_hf import SingerTrainingArguments, extract_features
from singer_hf.data import load_image_dataset
from singer_hf.vit.loading import load_model, model_from_config

# Pages whose blocks are held to more by a test of their own.
ELSEWHERE = {"export.md": "export/test_docs.py", "features.md": "extraction/test_docs_example.py"}
# Printed for a large machine -> what stands for it here.
STAND_INS = {
    "s3://bucket/": "",
    "dataloader_num_workers=8": "dataloader_num_workers=0",
    "max_samples=10_000": "max_samples=8",
}
STUDENT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
STUDENT |= {"intermediate_size": 32, "image_size": IMAGE, "patch_size": PATCH}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working folder in which the printed names exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    _shorten_runs(monkeypatch)
    torch.manual_seed(0)
    Path("vit-small-patch14").write_text(json.dumps(STUDENT))  # a path wins over the name
    saved_teacher(Path("facebook/dinov2-large"))
    _save_student("user/student")
    for folder in ("user/student/singer", "outputs/cleaned"):
        attach(lasting_vit(), layers_to_transform=[1]).save_pretrained(folder)
    for folder, number in (("photos", 168), ("path/to/images", 8), *((f"labelled/{part}", 24) for part in PARTS)):
        _write_images(Path(folder), number)


PARTS = ("train/cat", "train/dog", "test/cat", "test/dog")


def _shorten_runs(monkeypatch):
    original = TrainingArguments.__post_init__

    def shortened(args):
        args.max_steps, args.per_device_train_batch_size, args.bf16 = 2, 4, False
        args.use_cpu, args.report_to, args.disable_tqdm = True, "none", True
        original(args)

    monkeypatch.setattr(TrainingArguments, "__post_init__", shortened)


def _save_student(folder: str):
    model_from_config("vit-small-patch14").save_pretrained(folder)
    planted_processor().save_pretrained(folder)


def _write_images(folder: Path, number: int):
    folder.mkdir(parents=True)
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (number, *IMAGE, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{index}.jpg")


def run_page(name: str, **names: object) -> dict:
    """Runs the blocks of a page one after the other; what they leave."""
    (page,) = (page for page in PAGES if page.name == name)
    for number, block in enumerate(python_blocks(page)):
        for printed, stand_in in STAND_INS.items():
            block = block.replace(printed, stand_in)
        exec(compile(block, f"{name}, block {number}", "exec"), names)
    return names


def test_every_page_with_python_has_a_test():
    with_python = {page.name for page in PAGES if python_blocks(page)}
    here = {match[1] for name in globals() if (match := re.fullmatch("test_(.*)_page", name))}
    assert {name.removesuffix(".md").lower() for name in with_python - set(ELSEWHERE)} == here
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / "tests" / test).read_text(encoding="utf-8")


@pytest.mark.usefixtures("world")
def test_readme_page():
    names = run_page("README.md", images=planted_images(2))
    assert names["report"].verdict.level == "strong"
    assert names["maps"].shape == (2, 32, *GRID)
    assert torch.equal(names["maps"], extract_features(names["cleaned"], planted_images(2)))
    assert list(names["results"].main) == ["dinov2-large", "student"]
    assert Path("outputs/student/singer/adapter_model.safetensors").is_file()
    assert names["student"].config.hidden_size == 16
    assert isinstance(names["refined_teacher"], PeftModel)


@pytest.mark.usefixtures("world")
def test_audit_page():
    names = run_page("audit.md")
    assert names["report"].results[0].blocks[-1].outlier_share == pytest.approx(3 / 24)
    assert Path("audit/report.html").is_file()


@pytest.mark.usefixtures("world")
def test_cleaning_page():
    _write_images(Path("path/to/images/more"), 160)
    names = run_page(
        "cleaning.md", teacher=AutoModel.from_pretrained("facebook/dinov2-large", add_pooling_layer=False)
    )
    assert isinstance(names["cleaned_teacher"], PeftModel)
    assert Path("cleaned/report.html").is_file()


@pytest.mark.usefixtures("world")
def test_data_page():
    Path("timm").mkdir()
    Path("timm/mini-imagenet").symlink_to(Path("path/to/images").absolute())
    names = run_page("data.md", image_processor=planted_processor())
    assert names["dataset"][0]["pixel_values"].shape == (3, *IMAGE)


@pytest.mark.usefixtures("world")
def test_distillation_page():
    given = {"student": model_from_config("vit-small-patch14"), "images": load_image_dataset("path/to/images")}
    names = run_page("distillation.md", teacher=load_model("facebook/dinov2-large", "teacher"), **given)
    assert AutoModel.from_pretrained("outputs/student").config.hidden_size == 16
    assert type(names["trainer"].distiller).__name__ == "InlineDistiller"


@pytest.mark.usefixtures("world")
def test_evaluation_page():
    _save_student("outputs/student")
    labelled = {f"labelled_{part}": load_image_dataset("labelled", split=part) for part in ("train", "test")}
    given = {"student": model_from_config("vit-small-patch14"), "teacher": "facebook/dinov2-large"}
    names = run_page(
        "evaluation.md",
        images=load_image_dataset("path/to/images"),
        image_processor=planted_processor(),
        arguments=SingerTrainingArguments("out"),
        my_own_evaluator=lambda student: {"parameters": float(student.num_parameters())},
        **labelled,
        **given,
    )
    assert Path("evaluation/results.json").is_file()
    assert 0 <= names["probes"](names["student"])["knn_top1"] <= 1
    assert len(names["trainer"].evaluators) == 2


@pytest.mark.usefixtures("world")
def test_scaling_page():
    for shard in range(2):
        with tarfile.open(f"train-{shard}.tar", "w") as archive:
            for file in sorted(Path("path/to/images").glob("*.jpg"))[shard::2]:
                archive.add(file, file.name)
    assert run_page("scaling.md")["trainer"].state.global_step == 2


@pytest.mark.usefixtures("world")
def test_tutorial_page():
    attach(load_model("demo-teacher", "model"), layers_to_transform=[2]).save_pretrained("outputs/cleaned")
    assert np.shape(run_page("tutorial.md")["rows"][0]["map_5"]) == (96, 8, 8)
