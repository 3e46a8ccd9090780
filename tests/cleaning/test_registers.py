"""A test-time register by the same call: found without training, saved, loaded."""

import json
import re

import pytest
import torch
from cleanings import clean_planted, lasting_vit, saved_teacher
from planted import planted_images
from zoo import tiny_vit

from singer_hf import CleaningArguments, SingerConfig
from singer_hf.cleaning.registers import load_registers
from singer_hf.inspection.measure.audit import audit
from singer_hf.vit.loading import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registers")
    saved_teacher(folder / "teacher")
    clean_planted(str(folder / "teacher"), method="test_time_register", output_dir=str(folder / "cleaned"))
    return folder


def test_the_neuron_that_was_planted_is_saved(folder):
    """Unit 0 of the MLP of block 1."""
    assert json.loads((folder / "cleaned/register_neurons.json").read_text()) == {"neurons": {"1": [0]}}


def test_a_loaded_register_removes_the_outliers(folder):
    teacher = load_model(str(folder / "teacher"), "teacher").eval()
    registers = load_registers(teacher, folder / "cleaned")
    after = audit(teacher, [planted_images(4)], progress=False)
    assert [block.outlier_share for block in after.blocks] == [0, 0, 0, 0]
    registers.remove()
    with torch.no_grad():
        expected = lasting_vit()(planted_images(2)).last_hidden_state
        assert torch.equal(teacher(planted_images(2)).last_hidden_state, expected)


def test_the_card_says_how_to_load_it(folder):
    card = (folder / "cleaned/README.md").read_text()
    assert "the activations of 1 hidden units of block 1 move to one additional token" in card
    assert 'load_registers(teacher, "path/to/this/folder")' in card
    assert "| 3 | 12 % | 0 % | 13.37 | 1.00 |" in card
    assert str(folder) not in card


def test_another_register_is_not_overwritten(folder):
    with pytest.raises(ValueError, match="`output_dir` must not hold another register"):
        clean_planted(method="test_time_register", output_dir=str(folder / "cleaned"))


@pytest.mark.parametrize("setting", [{"config": SingerConfig()}, {"max_steps": 5}, {"push_to_hub": True}])
def test_a_setting_of_the_training_is_refused_for_a_register(setting):
    message = (
        f"`{next(iter(setting))}` must be left out for `method='test_time_register'`, which has no adapter, no "
        "training and no upload"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        clean_planted(method="test_time_register", **setting)


def test_an_upload_by_the_arguments_is_refused_for_a_register(tmp_path):
    args = CleaningArguments(output_dir=str(tmp_path), push_to_hub=True, report_to="none")
    with pytest.raises(ValueError, match="`push_to_hub` must be left out for `method='test_time_register'`"):
        clean_planted(method="test_time_register", args=args)


def test_a_teacher_without_artifacts_gets_no_register(tmp_path):
    teacher = tiny_vit(image_size=(32, 48))
    cleaned = clean_planted(teacher, method="test_time_register", output_dir=str(tmp_path))
    assert cleaned is teacher
    assert not hasattr(teacher, "test_time_registers")
    assert not list(tmp_path.iterdir())


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="`method` must be one of 'singer', 'test_time_register', got 'magic'"):
        clean_planted(method="magic")


def test_a_folder_without_a_register_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`folder` must hold register_neurons.json"):
        load_registers(lasting_vit(), tmp_path)
