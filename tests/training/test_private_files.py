"""No file of a run names a folder of this machine, and a run whose files name none is resumed all the same."""

import json

import pytest
from runs import arguments, image_processor, make_trainer
from zoo import tiny_vit

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


@pytest.fixture
def home(tmp_path):
    """A folder with the name of a user, with a teacher in it."""
    home = tmp_path / "jane-doe"
    tiny_vit().save_pretrained(home / "teacher")
    image_processor().save_pretrained(home / "teacher")
    return home


def test_no_file_of_a_run_names_the_user_s_folders(home):
    pytest.importorskip("tensorboard")
    settings = {"report_to": "tensorboard", "run_name": str(home / "name"), "max_steps": 2}
    trainer = make_trainer(home / "run", teacher_model=str(home / "teacher"), **settings)
    trainer.train()
    trainer.save_model()
    files = [file for file in (home / "run").rglob("*") if file.is_file()]
    assert any("tfevents" in file.name and b"learning_rate" in file.read_bytes() for file in files)
    assert [file.name for file in files if b"jane-doe" in file.read_bytes()] == []
    saved = json.loads((home / "run/training_args.json").read_text())
    assert (saved["output_dir"], saved["run_name"], saved["learning_rate"]) == ("run", "name", 1e-3)
    assert json.loads((home / "run/singer/adapter_config.json").read_text())["base_model_name_or_path"] == "teacher"


def test_a_run_is_resumed_from_files_without_folders(home):
    make_trainer(home / "run", teacher_model=str(home / "teacher"), max_steps=2).train()
    trainer = make_trainer(home / "run", teacher_model=str(home / "teacher"), max_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "value"), [("label_smoothing_factor", 0.1), ("neftune_noise_alpha", 5.0)])
def test_arguments_without_a_meaning_are_refused(name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"^`{name}` must be left out, got {value}: it needs "):
        arguments(tmp_path, **{name: value})
