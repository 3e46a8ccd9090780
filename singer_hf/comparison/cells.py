"""One cell of a comparison: a student trained by one method with one seed, and everything measured of it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import set_seed

from singer_hf.comparison.cell_folder import cell_folder, reference_folder
from singer_hf.comparison.images import probe_images, training_images
from singer_hf.comparison.measure.artifact_place_metrics import student_place_metrics, teacher_place_metrics
from singer_hf.comparison.measure.cell_metrics import (
    benchmark_metrics,
    probe_metrics,
    refinement_metrics,
    similarity_metrics,
)
from singer_hf.comparison.study import Study
from singer_hf.data.batches.image_batches import load_batches
from singer_hf.data.image_processors import load_image_processor, student_image_processor
from singer_hf.evaluation.online_probes import OnlineProbes
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.training.guards.complete import last_complete_checkpoint
from singer_hf.training.trainer import SingerDistillationTrainer
from singer_hf.vit.loading import load_model, model_from_config

_EVAL_IMAGES, _CURVE_IMAGES = 250, 2_000
_FEATURE_IMAGES = 500  # for similarities, inheritance and leakage
_BATCH = 250


def run_cell(study: Study, method: str, seed: int, quiet: bool = False) -> dict[str, Any]:
    """Trains and measures one cell, or loads its finished result; an interrupted cell is resumed.

    Args:
        study: The comparison.
        method: Name of the method.
        seed: The seed.
        quiet: Whether progress bars are off.

    Raises:
        ValueError: If the folder holds this cell, finished or not, with other settings.
    """
    cell = cell_folder(study, method, seed)
    if (done := cell.read_result()) is not None:
        return done
    cell.write_settings()
    folder = cell.path
    trainer = _make_trainer(study, method, seed, folder / "student", quiet)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder / "student"))
    trainer.save_model()
    result = {
        "method": method,
        "seed": seed,
        "settings": cell.digest,
        "metrics": _measure(study, trainer, folder),
        "curve": _curve(trainer),
        "num_parameters": sum(p.numel() for p in trainer.student.parameters()),
    }
    cell.write_result(result)
    for finished in (folder / "work", *(folder / "student").glob("checkpoint-*")):
        shutil.rmtree(finished, ignore_errors=True)
    return result


def run_reference(study: Study, name: str, model: str) -> dict[str, Any]:
    """Measures a teacher with the probes of the students.

    Args:
        study: The comparison.
        name: Name in tables.
        model: Folder or Hub id of the teacher.

    Raises:
        ValueError: If the teacher has no image processor, or the folder holds it with other settings.
    """
    reference = reference_folder(study, name, model)
    if (done := reference.read_result()) is not None:
        return done
    reference.write_settings()
    teacher, processor = load_model(model, "teacher_name_or_path").to(_device()), load_image_processor(model)
    if processor is None:
        raise ValueError(f"the {name} must be saved with an image processor, got {model!r} without one")
    train, test = probe_images(study)
    metrics = probe_metrics(teacher, processor, train, test) | _place_metrics(study, teacher, processor, test)
    metrics |= benchmark_metrics(teacher, processor, study.benchmarks, reference.path / "work")
    result = {"method": name, "settings": reference.digest, "metrics": metrics}
    reference.write_result(result)
    return result


def _place_metrics(study: Study, model: nn.Module, processor: Any, test: Dataset) -> dict[str, float | None]:
    distilled = load_model(study.teacher_name_or_path, "teacher_name_or_path").to(_device())
    processors = processor, load_image_processor(study.teacher_name_or_path) or processor
    batches = (_feature_batches(test, own) for own in processors)
    return teacher_place_metrics(model, distilled, *batches)


def prepare_trainer(
    study: Study, method: str, seed: int, args: SingerTrainingArguments, **options: Any
) -> SingerDistillationTrainer:
    """Returns the trainer of a cell. With one seed all methods start from the same student and use the same images.

    Args:
        study: The comparison.
        method: Name of the method.
        seed: The seed.
        args: The training arguments.
        **options: Further arguments of the trainer.

    Raises:
        ValueError: If the teacher has no image processor.
    """
    entry = study.methods[method]
    teacher_name = entry.teacher_name_or_path or study.teacher_name_or_path
    teacher_processor = load_image_processor(teacher_name)
    set_seed(seed)
    student, teacher = model_from_config(study.student_config), load_model(teacher_name, "teacher_name_or_path")
    processor = student_image_processor(student, teacher_processor)
    if processor is None:
        raise ValueError(f"`teacher_name_or_path` must hold an image processor, got {teacher_name!r} without one")
    rows = training_images(study)
    calibration = load_batches(rows, teacher_processor, study.num_calibration_images, batch_size=_BATCH)
    teacher = entry.method.prepare(teacher, calibration, seed)
    set_seed(seed)  # whatever the method drew, projectors and image order are the same for all methods
    return SingerDistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=rows,
        processing_class=processor,
        teacher_processing_class=teacher_processor,
        method=entry.method,
        run_facts={"dataset": study.dataset_name, "teacher": teacher_name},
        **options,
    )


def _make_trainer(study: Study, method: str, seed: int, output_dir: Path, quiet: bool) -> SingerDistillationTrainer:
    train, test = probe_images(study)
    interval = max(1, study.max_steps // max(study.num_evaluations, 1))
    defaults = {
        "disable_tqdm": quiet,
        "overwrite_output_dir": True,
        "logging_steps": interval,
        "save_steps": interval,
        "save_total_limit": 1,
        # The same on every machine.
        **{"learning_rate": 1e-3, "bf16": False, "tf32": False, "warmup_steps": 0.05},
        "report_to": "none",
        "num_artifact_images": 0,
        "eval_strategy": "steps" if study.num_evaluations else "no",
        "eval_steps": interval,
    }
    args = SingerTrainingArguments(
        output_dir=str(output_dir),
        max_steps=study.max_steps,
        seed=seed,
        **defaults | study.training | dict(study.methods[method].training),
    )
    few = test.select(range(min(_EVAL_IMAGES, len(test))))
    trainer = prepare_trainer(study, method, seed, args, eval_dataset=few if study.num_evaluations else None)
    if study.num_evaluations:
        probes = OnlineProbes(
            train, test, trainer.processing_class, probes=["knn"], share=1.0, max_images=_CURVE_IMAGES
        )
        trainer.evaluators.append(probes)
    return trainer


def _measure(study: Study, trainer: SingerDistillationTrainer, folder: Path) -> dict[str, Any]:
    distiller, student, processor = trainer.distiller.eval(), trainer.student.eval(), trainer.processing_class
    train, test = probe_images(study)
    batches = _feature_batches(test, processor)
    # Read anew: what a method did to its teacher must not change what it is compared with.
    teachers = {"teacher": load_model(study.teacher_name_or_path, "teacher_name_or_path").to(_device())}
    if study.clean_teacher_name_or_path:
        clean = load_model(study.clean_teacher_name_or_path, "clean_teacher_name_or_path")
        teachers["clean"] = clean.to(_device())
    metrics = probe_metrics(student, processor, train, test)
    metrics |= similarity_metrics(distiller, student, teachers, batches)
    metrics |= student_place_metrics(distiller, teachers["teacher"], teachers.get("clean"), batches)
    metrics |= refinement_metrics(distiller, batches)
    return metrics | benchmark_metrics(student, processor, study.benchmarks, folder / "work")


def _feature_batches(rows: Dataset, processor: Any) -> list[Tensor]:
    return load_batches(rows, processor, _FEATURE_IMAGES, batch_size=_BATCH, device=_device())


def _curve(trainer: SingerDistillationTrainer) -> list[dict[str, float]]:
    rows = [row for row in trainer.state.log_history if "eval_knn_top1" in row]
    return [{"step": row["step"], "knn_top1": row["eval_knn_top1"]} for row in rows]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
