"""SingerConfig: defaults, ranges and their messages, and what of it is saved."""

import json

import pytest
import torch
from peft import PeftConfig, get_peft_model
from zoo import images, tiny_vit

from singer_hf import SingerConfig


@pytest.mark.parametrize(
    ("num_blocks", "layers"), [(24, [17, 23]), (12, [8, 11]), (6, [3, 5]), (4, [2, 3]), (2, [1]), (1, [0])]
)
def test_default_layers_are_three_quarters_and_the_last(num_blocks, layers):
    assert SingerConfig().resolve_layers(num_blocks) == layers


@pytest.mark.parametrize(
    ("given", "layers"), [([-1, 0], [0, 5]), ([3], [3]), (4, [4]), ([5, 1, 3], [1, 3, 5]), ((-6,), [0]), ({2}, [2])]
)
def test_layers_are_sorted_and_counted_from_zero(given, layers):
    assert SingerConfig(layers_to_transform=given).resolve_layers(6) == layers


def test_what_depends_on_the_model_is_open_by_default():
    config = SingerConfig()
    assert config.r is None
    assert config.layers_to_transform is None
    assert config.num_prefix_tokens is None
    assert config.peft_type == "SINGER"


@pytest.mark.parametrize(("hidden_size", "rank"), [(1024, 64), (256, 64), (192, 48), (32, 8), (6, 1), (3, 1)])
def test_the_default_rank_is_a_quarter_of_the_width_and_at_most_64(hidden_size, rank):
    assert SingerConfig().resolve_rank(hidden_size) == rank
    assert SingerConfig(r=5).resolve_rank(hidden_size) == 5


def test_the_default_rank_is_saved_as_a_number(tmp_path):
    config = SingerConfig(layers_to_transform=[1])
    peft_model = get_peft_model(tiny_vit(), config)
    assert peft_model.base_model.singer_layers[1].singer_down["default"].out_features == 8
    assert config.r is None  # the configuration may serve a teacher of another width
    peft_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 8
    assert PeftConfig.from_pretrained(tmp_path).r == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r": 0}, "`r` must be an integer of at least 1, got 0"),
        ({"r": -3}, "`r` must be an integer of at least 1, got -3"),
        ({"r": 2.5}, "`r` must be an integer of at least 1, got 2.5"),
        ({"r": True}, "`r` must be an integer of at least 1, got True"),
        ({"null_threshold": 0.0}, "`null_threshold` must be greater than 0, got 0.0"),
        ({"null_threshold": -0.05}, "`null_threshold` must be greater than 0, got -0.05"),
        ({"null_threshold": float("nan")}, "`null_threshold` must be greater than 0, got nan"),
        ({"layers_to_transform": [1.0]}, "`layers_to_transform` must be a list of integers, got [1.0]"),
        ({"layers_to_transform": ["3"]}, "`layers_to_transform` must be a list of integers, got ['3']"),
        ({"layers_to_transform": [True]}, "`layers_to_transform` must be a list of integers, got [True]"),
        ({"layers_to_transform": "last"}, "`layers_to_transform` must be a list of integers, got 'last'"),
        (
            {"layers_to_transform": []},
            "`layers_to_transform` must name at least one block, got []; leave it out for the default",
        ),
        (
            {"init_weights": "zeros"},
            "`init_weights` must be one of 'nullspace', 'reference', 'random', 'identity', got 'zeros'",
        ),
        (
            {"nullspace_source": "attention"},
            "`nullspace_source` must be one of 'mlp', 'block', 'jacobian', got 'attention'",
        ),
        (
            {"init_weights": "reference", "nullspace_source": "block"},
            '`nullspace_source` must be "mlp" with `init_weights="reference"`, the only source of the released code; '
            "got 'block'",
        ),
        ({"num_prefix_tokens": -1}, "`num_prefix_tokens` must be an integer of at least 0, got -1"),
        ({"num_prefix_tokens": 1.0}, "`num_prefix_tokens` must be an integer of at least 0, got 1.0"),
    ],
)
def test_bad_values_are_refused_with_their_name_and_value(arguments, message):
    with pytest.raises(ValueError, match="must") as error:
        SingerConfig(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([6], "`layers_to_transform` must lie in [-6, 5] for a model of 6 blocks, got 6"),
        ([-7], "`layers_to_transform` must lie in [-6, 5] for a model of 6 blocks, got -7"),
        ([2, 2], "`layers_to_transform` must name each block once, got [2, 2]"),
        ([-1, 5], "`layers_to_transform` must name each block once, got [-1, 5]"),
    ],
)
def test_layers_that_the_model_does_not_have_once_are_refused(layers, message):
    config = SingerConfig(layers_to_transform=layers, r=4)
    for attach in (lambda: config.resolve_layers(6), lambda: get_peft_model(tiny_vit(6), config)):
        with pytest.raises(ValueError, match="layers_to_transform") as error:
            attach()
        assert str(error.value) == message


def test_a_rank_above_the_hidden_size_is_refused_when_attaching():
    with pytest.raises(ValueError, match="hidden size") as error:
        get_peft_model(tiny_vit(), SingerConfig(r=33))
    assert str(error.value) == "`r` must be at most the hidden size 32, got 33"


def test_jacobian_without_calibration_images_is_refused_when_attaching():
    with pytest.raises(ValueError, match="calibration") as error:
        get_peft_model(tiny_vit(), SingerConfig(r=4, nullspace_source="jacobian"))
    assert str(error.value) == (
        '`nullspace_source="jacobian"` needs calibration images: pass `calibration_images=` to SingerConfig, batches '
        "of pixel values (B, 3, H, W) normalised for the teacher"
    )


def test_the_saved_form_holds_indices_and_prefix_count_but_no_paths_and_no_images(tmp_path):
    config = SingerConfig(r=4, layers_to_transform=[-1, 1], nullspace_source="jacobian", calibration_images=images())
    get_peft_model(tiny_vit(), config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["layers_to_transform"] == [1, 3]
    assert saved["num_prefix_tokens"] == 1
    assert saved["peft_type"] == "SINGER"
    assert not {"target_modules", "exclude_modules", "calibration_images"} & set(saved)
    assert "layers." not in (tmp_path / "adapter_config.json").read_text()


def test_a_saved_configuration_comes_back_as_it_was(tmp_path):
    config = SingerConfig(
        r=7, layers_to_transform=[2], init_weights="random", init_scale=-1.0, null_threshold=0.1, init_seed=5
    )
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SingerConfig)
    for name in ("r", "layers_to_transform", "init_weights", "init_scale", "null_threshold", "init_seed"):
        assert getattr(loaded, name) == getattr(config, name), name


def test_calibration_images_stay_out_of_the_printed_form():
    config = SingerConfig(calibration_images=torch.zeros(1, 3, 8, 8))
    assert "calibration_images" not in repr(config)
