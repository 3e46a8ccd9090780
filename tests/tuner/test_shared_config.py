"""One SingerConfig on several models: each gets what depends on it, and the config stays as the user wrote it."""

import dataclasses
import json

import pytest
from peft import PeftModel, get_peft_model
from zoo import images, tiny, tiny_vit

from singer_hf import SingerConfig
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.tuner.model import adapter_settings

pytestmark = pytest.mark.filterwarnings("ignore:.*exceeds the effective null dimension", "ignore:.*was renamed from")


def settings(layers: list[int], prefix: int) -> dict:
    return {"r": 4, "layers_to_transform": layers, "num_prefix_tokens": prefix}


def test_every_model_gets_its_own_blocks_and_prefix_tokens():
    config = SingerConfig(r=4)
    before = dataclasses.asdict(config)
    shallow, deep = (get_peft_model(tiny_vit(blocks), config) for blocks in (4, 8))
    registers = get_peft_model(tiny("dinov2_registers"), config)
    assert adapter_settings(shallow) == settings([2, 3], 1)
    assert adapter_settings(deep) == settings([5, 7], 1)
    assert adapter_settings(registers) == settings([2, 3], 5)
    assert dataclasses.asdict(config) == before
    assert all(model.peft_config["default"] is config for model in (shallow, deep, registers))


def test_negative_blocks_are_counted_from_the_end_of_every_model():
    config = SingerConfig(r=4, layers_to_transform=[-1, 0])
    models = [get_peft_model(tiny_vit(blocks), config) for blocks in (4, 8)]
    assert [list(find_singer_layers(model)) for model in models] == [[0, 3], [0, 7]]
    assert config.layers_to_transform == [-1, 0]


def test_excluded_blocks_are_those_of_every_model():
    config = SingerConfig(r=4, layers_to_transform=[1, 3], exclude_modules=["layers.1", "encoder.layer.3"])
    models = get_peft_model(tiny_vit(), config), get_peft_model(tiny("dinov2"), config)
    assert [list(find_singer_layers(model)) for model in models] == [[3], [1]]


def test_two_adapters_of_one_model_may_share_a_config():
    config = SingerConfig(r=4)
    model = get_peft_model(tiny_vit(8), config)
    model.add_adapter("other", config)
    assert adapter_settings(model, "other") == adapter_settings(model) == settings([5, 7], 1)
    assert adapter_settings(model, "missing") == {}


@pytest.mark.parametrize("first_saved", [0, 1])
def test_a_saved_adapter_has_the_plain_indices_and_the_name_of_its_own_model(tmp_path, first_saved):
    config = SingerConfig(r=4)
    models = [tiny_vit(8), tiny("dinov2_registers")]
    for model, name in zip(models, ("someone/deep", "someone/registers"), strict=True):
        model.name_or_path = name
    peft_models = [get_peft_model(model, config) for model in models]
    for index in (first_saved, 1 - first_saved):
        peft_models[index].save_pretrained(tmp_path / str(index))
    saved = [json.loads((tmp_path / str(i) / "adapter_config.json").read_text()) for i in range(2)]
    assert [(s["layers_to_transform"], s["num_prefix_tokens"]) for s in saved] == [([5, 7], 1), ([2, 3], 5)]
    assert [s["base_model_name_or_path"] for s in saved] == ["someone/deep", "someone/registers"]
    assert config.layers_to_transform is None
    loaded = PeftModel.from_pretrained(tiny("dinov2_registers"), tmp_path / "1")
    assert adapter_settings(loaded) == {**settings([2, 3], 5), "base_model_name_or_path": "someone/registers"}
    assert loaded.peft_config["default"].layers_to_transform == [2, 3]


def test_a_config_saved_by_itself_stays_open_for_every_model(tmp_path):
    config = SingerConfig(r=4)
    get_peft_model(tiny_vit(8), config).save_pretrained(tmp_path / "adapter")
    config.save_pretrained(tmp_path / "config")
    again = SingerConfig.from_pretrained(tmp_path / "config")
    assert again.layers_to_transform is None
    assert list(find_singer_layers(get_peft_model(tiny_vit(), again))) == [2, 3]


def test_a_native_adapter_of_transformers_is_saved_with_the_indices_of_its_model(tmp_path):
    config = SingerConfig(r=4)
    model = tiny_vit(8)
    model.add_adapter(config)
    tiny_vit().add_adapter(config)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["layers_to_transform"], saved["num_prefix_tokens"]) == ([5, 7], 1)


def test_calibration_images_serve_every_model():
    config = SingerConfig(r=4, nullspace_source="jacobian", calibration_images=[images()])
    assert [list(find_singer_layers(get_peft_model(tiny_vit(n), config))) for n in (4, 8)] == [[2, 3], [5, 7]]
