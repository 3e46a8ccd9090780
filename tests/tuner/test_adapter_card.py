"""Every folder that a PeftModel with SiNGER writes says what to install and import; nobody else's text is lost."""

import json
from pathlib import Path

import pytest
from adapters import attach
from huggingface_hub import ModelCard
from peft import PeftModel
from zoo import tiny_vit

from singer_hf import SingerConfig
from singer_hf.cards.adapter_card import write_adapter_cards

FIRST_LINES = """# SiNGER adapter

This adapter needs `singer-hf`. Install it from its source folder, and import it before PEFT loads the adapter:

```bash
pip install .
```

```python
import singer_hf  # without it PEFT raises KeyError: 'SINGER'
from peft import PeftModel
"""


def card_in(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def saved(folder: Path, name: str = "default", teacher: str = "", **options: object) -> ModelCard:
    model = tiny_vit()
    model.name_or_path = model.config.name_or_path = teacher
    peft_model = attach(model)
    if name != "default":
        peft_model.add_adapter(name, SingerConfig(r=3, layers_to_transform=[1], init_weights="random"))
    peft_model.save_pretrained(folder, **options)
    return card_in(folder)


def test_the_first_lines_say_what_to_install_and_import(tmp_path):
    card = saved(tmp_path)
    assert card.text.lstrip().startswith(FIRST_LINES)
    assert "a map of rank 4 that refines the patch tokens after the blocks 2, 3 (counted from 0)" in card.text
    assert card.data["library_name"] == "peft"
    assert "singer-hf" in card.data["tags"]
    assert "More Information" not in card.text


def test_the_config_names_the_library_and_loads_again(tmp_path):
    saved(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["library_name"] == "singer-hf"
    assert SingerConfig.from_pretrained(tmp_path).r == 4
    PeftModel.from_pretrained(tiny_vit(), tmp_path)


def test_a_config_without_the_name_of_the_library_still_loads(tmp_path):
    saved(tmp_path)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    del content["library_name"]
    file.write_text(json.dumps(content))
    PeftModel.from_pretrained(tiny_vit(), tmp_path)


def test_a_teacher_on_the_hub_is_named_and_a_local_one_is_not(tmp_path):
    card = saved(tmp_path / "hub", teacher="someone/teacher")
    assert 'AutoModel.from_pretrained("someone/teacher")' in card.text
    assert card.data["base_model"] == "someone/teacher"
    assert "base_model:adapter:someone/teacher" in card.data["tags"]
    saved(tmp_path / "local", teacher=str(tmp_path / "teacher"))
    content = (tmp_path / "local/README.md").read_text()
    assert str(tmp_path) not in content
    assert "base_model" not in content


def test_every_folder_of_several_adapters_has_a_card(tmp_path):
    saved(tmp_path, "other")
    for folder in (tmp_path, tmp_path / "other"):
        assert card_in(folder).text.lstrip().startswith(FIRST_LINES)
    assert 'PeftModel.from_pretrained(teacher, "path/to/this/folder")' in card_in(tmp_path / "other").text
    assert "rank 4" in card_in(tmp_path).text
    assert "rank 3" in card_in(tmp_path / "other").text


def test_the_folder_above_an_adapter_saved_alone_names_its_subfolder(tmp_path):
    card = saved(tmp_path, "other", selected_adapters=["other"])
    assert card.text.lstrip().startswith(FIRST_LINES)
    assert "PeftModel.from_pretrained(teacher, \"path/to/this/folder\", subfolder='other')" in card.text


def test_a_native_adapter_of_transformers_gets_a_card(tmp_path):
    model = tiny_vit()
    model.add_adapter(SingerConfig(r=4, init_weights="random"))
    model.save_pretrained(tmp_path)
    assert card_in(tmp_path).text.lstrip().startswith(FIRST_LINES)


@pytest.mark.parametrize("text", ["# My adapter\n\nTrained by hand.", "Trained by hand."])
def test_text_of_others_stays_below_and_saving_again_adds_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n{text}\n")
    card = saved(tmp_path)
    first = (tmp_path / "README.md").read_text()
    assert card.text.lstrip().startswith(FIRST_LINES)
    assert text in card.text
    assert card.data["license"] == "mit"
    saved(tmp_path)
    assert (tmp_path / "README.md").read_text() == first


def test_the_card_of_a_folder_above_that_has_text_of_its_own_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("# A student\n")
    (tmp_path / "other").mkdir()
    write_adapter_cards(tmp_path / "other", "other", {"r": 4})
    assert (tmp_path / "README.md").read_text() == "# A student\n"
    assert "after some blocks" in card_in(tmp_path / "other").text
