"""The shipped teacher of the demo, and the command that trains it."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from singer_hf.artifacts.outliers import norm_quantiles, norm_statistics, token_norms
from singer_hf.configs import TRAINED, shipped_files
from singer_hf.data.drawn_scenes import draw_scene
from singer_hf.vit.features import capture_features

EXAMPLES = Path(__file__).parents[2] / "examples"
TEACHER = shipped_files(TRAINED)["demo-teacher"]
PLANTED_BLOCK = 2


@pytest.fixture(scope="module")
def patch_norms():
    model, processor = AutoModel.from_pretrained(TEACHER).eval(), AutoImageProcessor.from_pretrained(TEACHER)
    images = [draw_scene(index, seed=1).image for index in range(200)]
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = capture_features(model, pixel_values, range(6))
    return [token_norms(tokens[:, 1:]) for tokens in features.values()]


def test_the_shipped_folder_is_at_most_four_megabytes():
    assert sum(file.stat().st_size for file in TEACHER.iterdir()) <= 4_000_000


def test_its_processor_keeps_a_scene_as_it_is():
    processor = AutoImageProcessor.from_pretrained(TEACHER)
    image = draw_scene(0).image
    pixels = processor(image, return_tensors="pt")["pixel_values"][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(pixels, np.asarray(image) / 127.5 - 1, atol=1e-5)


def test_blocks_before_the_planted_one_have_no_outliers(patch_norms):
    for norms in patch_norms[:PLANTED_BLOCK]:
        assert norm_statistics(norms)["max_over_median"] < 2.5


def test_every_block_from_the_planted_one_on_has_outliers(patch_norms):
    for norms in patch_norms[PLANTED_BLOCK:]:
        assert 0.01 < norm_statistics(norms)["share"] < 0.06
        median, p99 = norm_quantiles(norms, (0.5, 0.99))
        assert p99 > 8 * median


def test_the_script_that_makes_the_teacher_runs(tmp_path, monkeypatch, capsys):
    arguments = ["--num_images", "64", "--num_test_images", "250", "--num_epochs", "1", "--hidden_size", "32"]
    monkeypatch.setattr(sys, "argv", ["train_demo_teacher.py", "--output_dir", str(tmp_path), *arguments])
    runpy.run_path(str(EXAMPLES / "train_demo_teacher.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "Before planting: top1" in printed
    assert "After planting: top1" in printed
    assert AutoModel.from_pretrained(tmp_path).config.intermediate_size == 4 * 32 + 1
    assert "--num_images 64" in (tmp_path / "README.md").read_text()
