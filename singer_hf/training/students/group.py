"""The distiller of one or of several students, from what the Trainer is given."""

import re
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.trainer_utils import HubStrategy

from singer_hf.data.image_processors import image_spec, load_image_processor, student_image_processor
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.student_group import StudentGroup
from singer_hf.distillation.teacher_input import teacher_image_size
from singer_hf.training.build import build_distiller, name_of
from singer_hf.vit.loading import load_model
from singer_hf.vit.structure import view_vit

if TYPE_CHECKING:
    from transformers import Trainer

# Folders of a run that are none of a student.
_TAKEN = re.compile("checkpoint-.*|singer|projectors|target_norms|raw_student|runs|figures|audit|generator")


def choose_processors(
    model: nn.Module | str | Mapping[str, nn.Module | str],
    students: Mapping[str, nn.Module],
    teacher_model: nn.Module | str,
    processor: Any,
    teacher_processor: Any,
) -> tuple[Any, Any]:
    """Returns the image processors of the students and of the teacher; the first student's is that of all.

    Args:
        model: The students as the Trainer is given them.
        students: The same, loaded.
        teacher_model: The teacher as the Trainer is given it.
        processor: The students' image processor. None: the one saved with ``model``, else a new one.
        teacher_processor: The teacher's. None: the one saved with ``teacher_model``, or none.
    """
    first = next(iter(model.values())) if isinstance(model, Mapping) else model
    teacher_processor = teacher_processor or load_image_processor(name_of(teacher_model))
    processor = processor or load_image_processor(name_of(first))
    return processor or student_image_processor(next(iter(students.values())), teacher_processor), teacher_processor


def load_students(model: nn.Module | str | Mapping[str, nn.Module | str]) -> dict[str, nn.Module]:
    """Loads one student, whose name is empty, or several by name.

    Args:
        model: A student, a local folder or a Hub id, or a dict name -> such.

    Raises:
        ValueError: If the dict is empty, a name is no name of a folder, or one student has two names.
    """
    if not isinstance(model, Mapping):
        return {"": load_model(model, "model")}
    if not model:
        raise ValueError("`model` must hold at least one student, got {}")
    for name in model:
        if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", str(name)) or _TAKEN.fullmatch(name):
            raise ValueError(
                f"`model` must name students by letters, digits, - and _, and not as a folder of the run, got {name!r}"
            )
    students = {name: load_model(student, f"model[{name!r}]") for name, student in model.items()}
    if len({id(student) for student in students.values()}) < len(students):
        raise ValueError("`model` must hold another student under every name, got one under several")
    return students


def check_several(trainer: "Trainer") -> None:
    """Checks that a run of several students uses nothing that is for one; with one student nothing is checked.

    Raises:
        ValueError: If it runs under FSDP, or uploads files for resuming.
    """
    if not trainer.named_runs:
        return
    if trainer.is_fsdp_enabled:
        raise ValueError("`model` must be one student under FSDP, which splits the weights, got several")
    if trainer.args.push_to_hub and trainer.args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
        raise ValueError(
            "`hub_strategy` must be 'end' or 'every_save' for several students, got "
            f"{trainer.args.hub_strategy.value!r}"
        )


def build_students(
    students: Mapping[str, nn.Module],
    method: Any,
    teacher: nn.Module,
    args: Any,
    processor: Any,
    teacher_processor: Any,
) -> FeatureDistiller | StudentGroup:
    """Returns the module that is trained: the distiller of the only student, or a group.

    The teacher of a group reads the images at the size that suits the student with the finest patch grid; the tokens
    of the others are interpolated to its grid.

    Args:
        students: The students, see :func:`load_students`.
        method: The method.
        teacher: The teacher, prepared by the method.
        args: The training arguments.
        processor: The students' image processor, or None.
        teacher_processor: The teacher's image processor, or None.

    Raises:
        ValueError: If a student cannot be distilled with these arguments.
    """
    shared = (args, processor, teacher_processor)
    lead = next(iter(students)) if len(students) == 1 else _finest(students, teacher, args, processor)
    first = build_distiller(method, students[lead], teacher, *shared)
    if args.compile_teacher:
        first.compile_teacher()
    if lead == "":
        return first
    given = {"teacher_input": first.teacher_input}
    members = {
        name: first if name == lead else build_distiller(method, student, teacher, *shared, **given)
        for name, student in students.items()
    }
    return StudentGroup(members, lead)


def _finest(students: Mapping[str, nn.Module], teacher: nn.Module, args: Any, processor: Any) -> str:
    """The name of the student for which the teacher's images are largest."""
    size = None if processor is None else image_spec(processor).size
    view = view_vit(teacher)
    sizes = {name: teacher_image_size(s, view, size, args.student_layers) for name, s in students.items()}
    return max(sizes, key=lambda name: prod(sizes[name]))
