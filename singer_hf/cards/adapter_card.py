"""The card beside a saved SiNGER adapter: what to install and import before PEFT can load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from singer_hf.cards.hub_metadata import hub_id
from singer_hf.cards.student_card import library_versions

LIBRARY_NAME = "singer-hf"
CARD_FILE = "README.md"
_BASE_MODEL_TAG = "base_model:adapter:"  # of PEFT, followed by the model's name or its folder
_PLACEHOLDER = "[More Information Needed]"  # PEFT writes an empty template beside every adapter
_END = "<!-- end of the text by singer-hf -->"
_TEXT = """# SiNGER adapter

This adapter needs `singer-hf`. Install it from its source folder, and import it before PEFT loads the adapter:

```bash
pip install .
```

```python
import singer_hf  # without it PEFT raises KeyError: 'SINGER'
from peft import PeftModel
from transformers import AutoModel

teacher = AutoModel.from_pretrained("{teacher}")
refined_teacher = PeftModel.from_pretrained(teacher, {arguments})
```

{description}

### Framework versions

- PEFT {versions[peft]}
- singer-hf {versions[singer-hf]}

{end}"""


def write_adapter_cards(
    folder: str | Path, adapter_name: str, settings: Mapping[str, Any], teacher: str | None = None
) -> None:
    """Writes the card of a saved adapter into its folder; text that somebody else wrote there stays below it.

    PEFT saves an adapter that is not named "default" in a subfolder of its name, and its own empty card in the folder
    above: that one is replaced as well.

    Args:
        folder: Folder of the saved adapter.
        adapter_name: Name of the adapter.
        settings: Fields of the adapter's configuration: ``layers_to_transform`` and ``r`` are shown.
        teacher: Hub id or folder of the teacher. The card shows no folder.
    """
    folder = Path(folder)
    _write(folder, settings, teacher, '"path/to/this/folder"')
    above = folder.absolute().parent
    if folder.name == adapter_name != "default" and _PLACEHOLDER in _text_of(above / CARD_FILE):
        _write(above, settings, teacher, f'"path/to/this/folder", subfolder={adapter_name!r}')


def add_adapter_text(folder: str | Path, text: str, license: str | None = None) -> None:
    """Sets the text below the part of the card that says how to load the adapter.

    Args:
        folder: Folder of a saved adapter.
        text: The text, markdown.
        license: Licence identifier of the Hub; None leaves the card's as it is.
    """
    file = Path(folder) / CARD_FILE
    card = ModelCard.load(file)
    card.text = f"{card.text.partition(_END)[0]}{_END}\n\n{text.strip()}\n"
    if license:
        card.data["license"] = license
    card.save(file)


def _write(folder: Path, settings: Mapping[str, Any], teacher: str | None, arguments: str) -> None:
    file, teacher_id = folder / CARD_FILE, hub_id(teacher or "")
    card = ModelCard.load(file) if file.exists() else ModelCard("---\nlibrary_name: peft\n---\n")
    text = _TEXT.format(
        teacher=teacher_id or "path/to/the/teacher",
        arguments=arguments,
        description=_description(settings),
        versions=library_versions(),
        end=_END,
    )
    others = "" if _PLACEHOLDER in card.text else card.text.partition(_END)[2] or card.text
    others = "" if others.strip().endswith(_END) else others.strip()
    card.text = f"{text}\n\n{others}".strip() + "\n"
    _complete_metadata(card, teacher_id)
    card.save(file)


def _description(settings: Mapping[str, Any]) -> str:
    blocks = settings.get("layers_to_transform")
    after = f"after the blocks {', '.join(map(str, blocks))} (counted from 0)" if blocks else "after some blocks"
    return (
        "It is an adapter of [SiNGER](https://arxiv.org/abs/2509.20986) for a vision transformer, a map of rank "
        f"{settings['r']} that refines the patch tokens {after}."
    )


def _complete_metadata(card: ModelCard, teacher_id: str | None) -> None:
    """Adds the tag of the library, and the teacher if it is on the Hub; PEFT also names local folders."""
    card.data["library_name"] = "peft"
    tags = [tag for tag in card.data.get("tags") or [] if not tag.startswith(_BASE_MODEL_TAG)]
    card.data["tags"] = sorted({*tags, LIBRARY_NAME, *([f"{_BASE_MODEL_TAG}{teacher_id}"] if teacher_id else [])})
    for name in ("base_model", "base_model_relation"):
        card.data.pop(name, None)
    if teacher_id:
        card.data["base_model"] = teacher_id
        card.data["base_model_relation"] = "adapter"


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
