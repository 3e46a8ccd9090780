"""The Space shows a photo's norm maps before and after a clean-up, on tiny models, without a browser or gradio."""

import re
import runpy

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from printed import ROOT

from singer_hf import SingerConfig
from singer_hf.configs import TRAINED, shipped_files
from singer_hf.data.drawn_scenes import draw_scene
from singer_hf.tuner.model import attach_adapter
from singer_hf.vit.loading import load_model

SPACE = ROOT / "examples" / "space"
TEACHER = str(shipped_files(TRAINED)["demo-teacher"])


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("matplotlib")
    torch.set_num_threads(1)
    return runpy.run_path(str(SPACE / "app.py"))


@pytest.fixture(scope="module")
def photo():
    """A scene with plain background, on which the demo's teacher has artifacts."""
    return draw_scene(3, seed=3).image


def ratios(text):
    return [float(value) for value in re.findall(r"\*\*(\d+\.\d+)\*\*", text)]


def test_without_an_adapter_the_untrained_clean_up_is_said_to_be_one(app, photo):
    picture, text = app["inspect_photo"](photo, TEACHER, edge=64)
    assert picture.size[0] > 500
    assert "outliers begin after block 2" in text
    assert "**untrained** clean-up: behind block 2" in text
    before, after = ratios(text)
    assert before > 5 > 2 > after
    # Nothing stays on the model.
    assert app["inspect_photo"](photo, TEACHER, edge=64)[1] == text


def test_an_adapter_is_named_and_used(app, photo, tmp_path):
    teacher = attach_adapter(load_model(TEACHER, "teacher"), SingerConfig(layers_to_transform=[2], gate="none", r=4))
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "singer_up" in name:
                parameter.zero_()
    teacher.save_pretrained(tmp_path)
    _, text = app["inspect_photo"](photo, TEACHER, str(tmp_path), 64)
    assert f"The clean-up is the trained adapter `{tmp_path}`." in text
    before, after = ratios(text)
    assert before == after  # this adapter is the identity


def test_a_photo_without_artifacts_has_nothing_to_clean(app):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    picture, text = app["inspect_photo"](Image.fromarray(noise), TEACHER, edge=64)
    assert app["NOTHING"] in text
    assert len(ratios(text)) == 1
    assert picture.size[0] > 200


def test_a_photo_keeps_its_shape_in_whole_patches(app):
    assert tuple(app["prepare"](Image.new("RGB", (300, 200)), TEACHER, 96).shape) == (1, 3, 64, 96)


def test_without_a_photo_the_page_says_what_to_do(app):
    with pytest.raises(ValueError, match=r"^Upload a photo first\.$"):
        app["inspect_photo"](None, TEACHER)


def test_the_space_card_names_what_is_there():
    card = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    app = (SPACE / "app.py").read_text(encoding="utf-8")
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert all(f'"{name}"' in app for name in card["models"])
    assert len(card["short_description"]) <= 60


def test_the_page_is_built(app):
    pytest.importorskip("gradio")
    page = app["interface"]()
    labels = [block["props"].get("label") for block in page.get_config_file()["components"]]
    assert {"Photo", "Model", "SiNGER adapter (optional)", "Before and after"} <= set(labels)
