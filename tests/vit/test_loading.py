"""Models and image processors by module, folder or id, and what is said where there is none."""

import json

import pytest
import torch
import transformers as hf
from runs import differing, image_processor, small_student
from zoo import SIZES, images, tiny, tiny_vit

from singer_hf.data.image_processors import load_image_processor, student_image_processor
from singer_hf.vit.loading import load_model, model_from_config


def test_a_module_is_returned_as_it_is():
    model = tiny_vit()
    assert load_model(model, "model") is model


def test_a_folder_gives_the_saved_model_without_a_pooler(tmp_path):
    hf.ViTModel(hf.ViTConfig(**SIZES)).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "model")
    assert type(model) is hf.ViTModel
    assert model.pooler is None
    saved = hf.AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(images()).last_hidden_state, saved.eval()(images()).last_hidden_state)


def test_a_model_without_the_choice_of_a_pooler_is_loaded_too(tmp_path):
    model = tiny("dinov2")
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), "model")
    assert differing(loaded.state_dict(), model.state_dict()) == set()


def test_a_timm_model_is_loaded_from_a_folder(tmp_path):
    model = tiny("timm_vit")
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), "model")
    assert type(loaded) is hf.TimmWrapperModel
    assert differing(loaded.state_dict(), model.state_dict()) == set()


@pytest.mark.parametrize("name", ["no/such-model", "./no/such/folder"])
def test_what_cannot_be_found_is_named_with_its_argument(name):
    message = (
        rf"^`teacher_model` must be a module, a local folder with config.json and weights, or a Hub id, got '{name}': "
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_model(name, "teacher_model")


def test_a_folder_without_weights_is_named(tmp_path):
    hf.ViTConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"^`model` must be a module, a local folder with config.json and weigh"
    ):
        load_model(str(tmp_path), "model")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_config_gives_a_model_with_random_weights_and_no_pooler(tmp_path, as_file):
    hf.ViTConfig(**SIZES).save_pretrained(tmp_path)
    model = model_from_config(tmp_path / "config.json" if as_file else tmp_path)
    assert type(model) is hf.ViTModel
    assert model.pooler is None
    assert (model.config.hidden_size, len(model.layers)) == (32, 4)


def test_a_missing_config_is_named(tmp_path):
    file = tmp_path / "none.json"
    wanted = "a JSON file, a folder with config.json, a name of the package, or a Hub id"
    message = rf"^`student_config` must be {wanted}, got '{file}': "
    with pytest.raises(FileNotFoundError, match=message):
        model_from_config(file)


def test_a_saved_processor_is_read_and_a_missing_one_is_none(tmp_path):
    assert load_image_processor(None) is None
    assert load_image_processor(str(tmp_path)) is None
    image_processor(0.25, 0.5).save_pretrained(tmp_path)
    assert list(load_image_processor(str(tmp_path)).image_mean) == [0.25] * 3


@pytest.mark.parametrize(("config", "size"), [({}, 32), ({"image_size": 48}, 48)])
def test_a_student_without_a_processor_takes_the_teachers_colours_at_its_own_size(config, size):
    processor = student_image_processor(small_student(**config), image_processor(0.4, 0.2))
    assert processor.size == {"height": size, "width": size}
    assert list(processor.image_mean) == pytest.approx([0.4] * 3, abs=1e-6)
    assert list(processor.image_std) == pytest.approx([0.2] * 3, abs=1e-6)


def test_a_student_that_does_not_say_its_size_takes_the_teachers():
    resnet = hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    assert student_image_processor(resnet, image_processor()).size == {"height": 32, "width": 32}
    assert student_image_processor(resnet, None) is None


def test_nothing_of_a_folder_is_executed(tmp_path):
    """A config that asks for code of its own is refused without the user's flag."""
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises((ValueError, OSError)):
        load_model(str(tmp_path), "model")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_type_and_attention_of_the_loaded_weights_can_be_chosen(tmp_path, dtype):
    tiny_vit().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "model", dtype=dtype, attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.config._attn_implementation == "eager"


def test_auto_is_the_type_of_the_saved_weights(tmp_path):
    tiny_vit().to(torch.bfloat16).save_pretrained(tmp_path)
    for options in ({}, {"dtype": "auto"}):
        assert next(load_model(str(tmp_path), "model", **options).parameters()).dtype == torch.bfloat16


def test_an_attention_whose_library_is_missing_is_named(tmp_path):
    if hf.utils.is_flash_attn_2_available():
        pytest.skip("flash attention is installed")
    tiny_vit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^`attn_implementation` must be one that is installed, got 'flash_attentio"):
        load_model(str(tmp_path), "model", attn_implementation="flash_attention_2")
