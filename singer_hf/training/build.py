"""From what a Trainer is given to the composite that it trains."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from singer_hf.baselines.vitkd import ViTKDDistiller
from singer_hf.data.image_processors import image_spec
from singer_hf.distillation.distiller import Refiner, SingerDistiller
from singer_hf.distillation.student_features import read_student
from singer_hf.distillation.teacher_input import TeacherInput
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.vit.structure import view_vit


def compose(
    student: nn.Module,
    teacher: nn.Module,
    args: SingerTrainingArguments,
    processor: Any,
    teacher_processor: Any,
    refiner: Refiner | None = None,
) -> SingerDistiller:
    """The composite for a run, with sizes and normalisations as the image processors say.

    Raises:
        ValueError: If student and teacher cannot be distilled as ``args`` ask.
    """
    if args.adapter_warmup_steps and not find_singer_layers(teacher):
        raise ValueError(
            f"`adapter_warmup_steps` must be 0 for a teacher without SiNGER adapters, got {args.adapter_warmup_steps}"
        )
    spec = None if processor is None else image_spec(processor)
    teacher_spec = None if teacher_processor is None else image_spec(teacher_processor)
    shared = {
        "teacher_layers": args.teacher_layers,
        "student_layers": args.student_layers,
        "kd_weight": args.kd_weight,
        "image_size": spec and spec.size,
        "student_normalization": spec and (spec.mean, spec.std),
        "teacher_normalization": teacher_spec and (teacher_spec.mean, teacher_spec.std),
    }
    if args.distillation == "vitkd":
        if refiner is not None:
            raise ValueError('`refiner` must be left out with `distillation="vitkd"`, which has no use for it')
        return ViTKDDistiller(
            student, teacher, generation_weight=args.generation_weight, mask_ratio=args.mask_ratio, **shared
        )
    return SingerDistiller(
        student,
        teacher,
        refiner=refiner,
        outlier_weight=args.outlier_weight,
        info_weight=args.info_weight,
        outlier_quantile=args.outlier_quantile,
        info_loss=args.info_loss,
        detach_refined=args.detach_refined,
        **shared,
    )


def teacher_image_size(
    student: nn.Module, teacher: nn.Module, processor: Any, student_layers: Sequence[int] | None = None
) -> tuple[int, int]:
    """(height, width) in pixels of the images that the teacher of a run will see.

    Args:
        student: The student.
        teacher: The teacher.
        processor: The student's image processor. None: the size in its config counts.
        student_layers: Student blocks of the run, if they are not the default ones.

    Raises:
        ValueError: If the patch grids cannot be matched.
    """
    size = None if processor is None else image_spec(processor).size
    reader = read_student(student, size)
    size = size or reader.image_size
    grid = reader.grid((student_layers or [reader.num_blocks - 1])[-1], size)
    return TeacherInput(view_vit(teacher), size, grid).teacher_image_size


def check_student(student: nn.Module) -> None:
    """Refuses a student that nobody could load from what is saved.

    Raises:
        ValueError: If it is no transformers model.
    """
    if not isinstance(student, PreTrainedModel):
        raise ValueError(
            "`model` must be a transformers model, so that anyone can load what is saved, got "
            f"{type(student).__name__}; wrap a timm model as TimmWrapperModel"
        )


def check_devices(args: SingerTrainingArguments) -> None:
    """Refuses several GPUs in one process: `nn.DataParallel` cannot run the composite.

    Raises:
        ValueError: If one process sees several GPUs.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process; start one process per GPU (`accelerate launch` or "
            "`torchrun --nproc_per_node`), or show it a single one with CUDA_VISIBLE_DEVICES"
        )


def name_of(model: nn.Module | str) -> str | None:
    """Hub id or folder a model was given by or loaded from; None if it has none."""
    if isinstance(model, str):
        return model
    return getattr(getattr(model, "config", None), "name_or_path", None) or None


def check_sharded_run(args: SingerTrainingArguments, resume_from_checkpoint: str | bool | None) -> None:
    """Refuses what needs whole weights in a run that FSDP splits.

    Raises:
        ValueError: If it resumes, reloads its best checkpoint or keeps a running average.
    """
    if resume_from_checkpoint or args.load_best_model_at_end or args.ema_decay is not None:
        raise ValueError(
            "resuming, `load_best_model_at_end` and `ema_decay` do not work with FSDP, which splits the weights; "
            "leave them out or start the run without FSDP (examples/accelerate/multi_gpu.yaml)"
        )
