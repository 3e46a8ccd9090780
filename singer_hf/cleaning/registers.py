"""A test-time register as a clean-up without training: its neurons are found, saved and loaded."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn

from singer_hf.baselines.cleanups.register_method import TestTimeRegister
from singer_hf.baselines.cleanups.registers import TestTimeRegisters, install_test_time_registers
from singer_hf.cards.hub_metadata import hub_id
from singer_hf.cards.markdown import plain_text
from singer_hf.cleaning.report import CleaningReport

NEURONS_FILE = "register_neurons.json"
_TEXT = """---
library_name: singer-hf
tags: [singer-hf, test-time-register]
{base_model}---
# Test-time register

It takes the high-norm artifact tokens off the patches of a vision transformer, without training ([Jiang et al.,
2025](https://arxiv.org/abs/2506.08010)): the activations of {neurons} move to one additional token. It is no PEFT
adapter and needs `singer-hf`:

```python
from transformers import AutoModel
from singer_hf.cleaning.registers import load_registers

teacher = AutoModel.from_pretrained("{teacher}")
load_registers(teacher, "path/to/this/folder")
```

{reasons}

{table}
"""


def clean_with_registers(report: CleaningReport, output_dir: str | Path | None) -> nn.Module:
    """Installs a test-time register and writes its neurons with a card and a page.

    Args:
        report: Teacher, images and the audit before; the one after is added.
        output_dir: The folder. None: nothing is written.

    Returns:
        The teacher itself, with the register installed.

    Raises:
        ValueError: If the teacher takes no register, or the folder holds another one.
    """
    folder = None if output_dir is None else Path(output_dir)
    if folder is not None and (folder / NEURONS_FILE).exists():
        raise ValueError(f"`output_dir` must not hold another register, got {str(folder)!r}; use another folder")
    model = TestTimeRegister().prepare(report.inputs.teacher, report.inputs.batches)
    report.finish(model)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _save(model.test_time_registers, folder, report)
    return model


def load_registers(teacher: nn.Module, folder: str | Path) -> TestTimeRegisters:
    """Installs a saved test-time register in the teacher it was found for.

    Args:
        teacher: The teacher, changed in place.
        folder: Folder with ``register_neurons.json``.

    Returns:
        The installed register; ``remove()`` restores the teacher.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a block or unit is not there, or the file is damaged.
    """
    file = Path(folder) / NEURONS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"`folder` must hold {NEURONS_FILE}, got {str(folder)!r}")
    neurons: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["neurons"]
    units = {int(block): torch.tensor(values, dtype=torch.long) for block, values in neurons.items()}
    teacher.test_time_registers = install_test_time_registers(teacher, units)
    return teacher.test_time_registers


def _save(registers: TestTimeRegisters, folder: Path, report: CleaningReport) -> None:
    neurons = {str(block): units.tolist() for block, units in registers.neurons.items()}
    report.save(folder)
    teacher = hub_id(getattr(report.inputs.teacher, "name_or_path", "") or "")
    text = _TEXT.format(
        base_model=f"base_model: {teacher}\n" if teacher else "",
        neurons=", ".join(f"{len(units)} hidden units of block {block}" for block, units in neurons.items()),
        teacher=teacher or "path/to/the/teacher",
        reasons="\n".join(map(plain_text, report.plan.reasons[:1])),
        table=report.table(),
    )
    ModelCard(text).save(folder / "README.md")
    # Last, so that a folder with it is complete.
    (folder / NEURONS_FILE).write_text(json.dumps({"neurons": neurons}, indent=2) + "\n", encoding="utf-8")
