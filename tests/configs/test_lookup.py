"""Files of the package by name: paths win, unknown names are refused with the nearest one."""

import json

import pytest
import torch

from singer_hf.configs import COMPARISONS, MODELS, RUNS, TRAINED, find, hint, listing, shipped_files
from singer_hf.data.image_processors import load_image_processor
from singer_hf.vit.loading import load_config, load_model, model_from_config


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (MODELS, "vit-small-patch16"),
        (MODELS, "vit-6x64-patch4-32px"),
        (TRAINED, "demo-teacher"),
        (RUNS, "dinov2-l_to_vit-s"),
        (COMPARISONS, "cifar10_planted"),
    ],
)
def test_a_name_is_found_and_listed(kind, name):
    assert find(name, kind) == str(shipped_files(kind)[name])
    assert f"  {name}\n" in f"{listing()}\n"


@pytest.mark.parametrize("name", ["vit-l_to_vit-t.yaml", "vit-l_to_vit-t.yml", "vit-l_to_vit-t"])
def test_the_ending_of_the_file_may_be_left_out(name):
    assert find(name, RUNS).endswith("vit-l_to_vit-t.yaml")


def test_other_names_stay_as_they_are():
    assert find("facebook/dinov2-large", TRAINED) == "facebook/dinov2-large"
    assert find("somewhere/vit-small-patch16.json", MODELS) == "somewhere/vit-small-patch16.json"


def test_a_path_of_the_user_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads(shipped_files(MODELS)["vit-small-patch16"].read_text()) | {"hidden_size": 36}
    (tmp_path / "vit-small-patch16").write_text(json.dumps(config))
    assert load_config("vit-small-patch16").hidden_size == 36
    monkeypatch.chdir("/")
    assert load_config("vit-small-patch16").hidden_size == 384


def test_models_and_processors_are_loaded_by_name():
    teacher = load_model("demo-teacher", "teacher_name_or_path")
    assert teacher.config.hidden_size == 96
    assert load_image_processor("demo-teacher").size == {"height": 64, "width": 64}
    with torch.device("meta"):
        assert model_from_config("vit-tiny-patch16").config.hidden_size == 192


def test_an_unknown_config_is_refused_in_one_line_with_the_nearest_name():
    with pytest.raises(FileNotFoundError) as caught:
        model_from_config("vit-smal-patch16")
    assert str(caught.value) == (
        "`student_config` must be a JSON file, a folder with config.json, a name of the package, or a Hub id, got "
        "'vit-smal-patch16'; did you mean 'vit-small-patch16'? `singer-hf --list` lists the names of the package"
    )


def test_an_unknown_teacher_is_refused_in_one_line_with_the_nearest_name():
    with pytest.raises(FileNotFoundError, match=r"got 'demo-techer'; did you mean 'demo-teacher'\?"):
        load_model("demo-techer", "teacher_name_or_path")


def test_a_name_unlike_all_others_gets_the_place_where_they_are_listed():
    assert hint("quite else", RUNS) == "`singer-hf --list` lists the names of the package"
