"""Saving and loading of a distillation run: plain student, adapter, projectors."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from singer_hf.cards.privacy import without_paths
from singer_hf.distillation.feature_distiller import FeatureDistiller

ADAPTER_FOLDER = "singer"
WEIGHTS_FILE = "model.safetensors"
RAW_STUDENT_FILE = f"raw_student/{WEIGHTS_FILE}"


def save_distilled(
    distiller: FeatureDistiller,
    folder: str | Path,
    student: nn.Module | None = None,
    state_dict: dict[str, Tensor] | None = None,
    resumable: bool = True,
) -> None:
    """Writes the plain student to ``folder``, the adapter to ``singer/`` and the projectors to ``projectors/``.

    Args:
        distiller: The trained distiller.
        folder: Target folder.
        student: The student to publish where it is not ``distiller.student`` (a moving average).
        state_dict: The distiller's gathered state, where its own parameters are shards (FSDP).
        resumable: Whether the trained weights beside a moving average are written too, to ``raw_student/``.
    """
    folder = Path(folder)
    published = distiller.student if student is None else student
    student_state = _part(state_dict, "student")
    published.save_pretrained(folder, state_dict=student_state if student is None else None)
    if student is not None and resumable:
        _save_tensors(student_state or distiller.student.state_dict(), folder / RAW_STUDENT_FILE)
    for name, module in distiller.saved_modules.items():
        _save_tensors(_part(state_dict, name) or module.state_dict(), folder / name / WEIGHTS_FILE)
    if distiller.singer_layers:
        save_adapter(distiller.teacher, folder / ADAPTER_FOLDER, _part(state_dict, "teacher"))


def load_distilled(distiller: FeatureDistiller, folder: str | Path, average: nn.Module | None = None) -> None:
    """Loads the weights that :func:`save_distilled` wrote into a distiller of the same configuration.

    Args:
        distiller: The distiller.
        folder: Folder of a run or checkpoint.
        average: The moving average of the student, if the run keeps one.
    """
    folder = Path(folder)
    load_student(distiller, folder, average)
    for name, module in distiller.saved_modules.items():
        module.load_state_dict(load_file(folder / name / WEIGHTS_FILE))
    if distiller.singer_layers:
        name, weights = distiller.teacher.active_adapter, distiller.teacher.parameters()
        trained = any(weight.requires_grad for weight in weights)
        distiller.teacher.load_adapter(str(folder / adapter_path(name)), name, is_trainable=trained)


def load_student(distiller: FeatureDistiller, folder: str | Path, average: nn.Module | None = None) -> None:
    """Loads student and projectors alone; adapter and statistics of the targets stay as they are.

    The student is loaded through ``from_pretrained``, which reverts the renaming of keys at saving.

    Args:
        distiller: The distiller.
        folder: Folder of a run or checkpoint.
        average: The moving average of the student, if the run keeps one.
    """
    folder = Path(folder)
    student_class = type(distiller.student)
    # A student built without a pooler must be loaded without one.
    options = {"add_pooling_layer": False} if getattr(distiller.student, "pooler", True) is None else {}
    published = student_class.from_pretrained(folder, **options).state_dict()
    raw_file = folder / RAW_STUDENT_FILE
    distiller.student.load_state_dict(load_file(raw_file) if raw_file.is_file() else published)
    if average is not None:
        average.load_state_dict(published)
    for name, module in distiller.trained_modules.items():
        module.load_state_dict(load_file(folder / name / WEIGHTS_FILE))


def save_adapter(teacher: nn.Module, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Writes the active adapter of a teacher, without the teacher's folder.

    Args:
        teacher: A ``PeftModel`` with SiNGER adapters.
        folder: Target folder.
        state_dict: The teacher's gathered state (FSDP).
    """
    teacher.save_pretrained(str(folder), selected_adapters=[teacher.active_adapter], state_dict=state_dict)
    for file in folder.rglob("adapter_config.json"):  # with the teacher's folder, which loading does not need
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(without_paths(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def adapter_path(adapter_name: str) -> str:
    """Folder of an adapter inside a run's folder; PEFT saves every adapter but "default" in a folder of its own."""
    return ADAPTER_FOLDER if adapter_name == "default" else f"{ADAPTER_FOLDER}/{adapter_name}"


def check_writable(output_dir: str | Path) -> None:
    """Creates the output folder, if there is none, and checks that files can be written into it.

    Raises:
        OSError: If the folder is read-only or cannot be created.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise OSError(
            f"`output_dir` must be a folder that can be written to, got {str(output_dir)!r}: {error.strerror}; change "
            "its permissions or choose another folder"
        ) from error


def check_disk_space(trained: nn.Module, published: Iterable[nn.Parameter], output_dir: str | Path) -> None:
    """Checks that the first checkpoint fits on the disk.

    Args:
        trained: The module that is trained.
        published: The weights that are saved for others.
        output_dir: The run's folder.

    Raises:
        OSError: If less is free than the trained weights, two optimiser moments and the published weights need.
    """
    needed = 3 * _num_bytes(p for p in trained.parameters() if p.requires_grad) + _num_bytes(published)
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise OSError(
            f"a checkpoint takes about {needed / 2**20:.0f} MiB and only {free / 2**20:.0f} MiB are free at "
            f"{str(output_dir)!r}; free some space or choose another `output_dir`"
        )


def _num_bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _part(state_dict: dict[str, Tensor] | None, name: str) -> dict[str, Tensor] | None:
    if state_dict is None:
        return None
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, file, metadata={"format": "pt"})
