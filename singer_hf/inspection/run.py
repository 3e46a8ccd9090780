"""A complete audit run: audits one or several models, compares them, and writes the report."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from torch import nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.distillation.teacher_input import TeacherInput
from singer_hf.inspection.inputs import AuditSettings, ImageBatches, load_image_batches
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.feature_comparison import compare_features, load_projectors
from singer_hf.inspection.measure.nullspace_report import report_nullspace
from singer_hf.inspection.measure.snapshots import Snapshot, take_snapshot
from singer_hf.inspection.report.page import draw_report_figures, figure_png, render_report
from singer_hf.inspection.report.verdict import judge
from singer_hf.vit.structure import view_vit


@dataclass(frozen=True)
class AuditedModel:
    """A model with its audit.

    Attributes:
        path: Folder or Hub id.
        model: The model, with its adapter if it has one.
        images: The images, normalised for the model.
        result: The audit.
        snapshot: Features of a few images for the figures.
    """

    path: str
    model: nn.Module
    images: ImageBatches
    result: AuditResult
    snapshot: Snapshot


def run_audit(settings: AuditSettings, load_model: Callable[[str], nn.Module]) -> list[str]:
    """Audits all models of the settings and writes audit.json, figures/*.png and report.html.

    Args:
        settings: The settings; the first of several models is the teacher with which the others are compared.
        load_model: Loads the model of a folder or Hub id, with its adapter if the settings name one.

    Returns:
        The headline of every model's verdict.

    Raises:
        ValueError: If the output folder cannot be written, an adapter is given for several models, or a setting is
            out of range.
        FileNotFoundError: If a model or the dataset does not exist.
        MemoryError: If a single image does not fit in memory.
    """
    folder, names = _prepare_folder(settings.output_dir), settings.model_name_or_path
    if settings.adapter_name_or_path is not None and len(names) > 1:
        raise ValueError(f"`adapter_name_or_path` goes with one model, got {len(names)} models")
    labels = [Path(name).name if len({Path(n).name for n in names}) == len(names) else name for name in names]
    models = [audit_model(load_model(name), name, label, settings) for name, label in zip(names, labels, strict=True)]
    comparisons = {
        f"{student.result.name} compared with {models[0].result.name}": compare_with_teacher(student, models[0])
        for student in models[1:]
    }
    source = Path(settings.dataset_name or "drawn scenes").name
    write_report(folder, models, comparisons, source=f"{source}, seed {settings.seed}")
    return [judge(entry.result).headline for entry in models]


def audit_model(model: nn.Module, name: str, label: str, settings: AuditSettings) -> AuditedModel:
    """Loads the images for a model and audits it.

    Args:
        model: The model, with its adapter if the settings name one.
        name: Folder or Hub id of the model.
        label: Name of the model in tables and figures.
        settings: The settings.
    """
    images = load_image_batches(name, settings)
    rule = OutlierRule(mad_factor=settings.mad_factor, absolute=settings.absolute_threshold)
    first = images.first()
    result = audit(model, images, rule=rule, name=label)
    if settings.adapter_name_or_path is not None:
        result.adapter = report_nullspace(model, [first])
    if images.unreadable:
        result.notes.append(f"{len(images.unreadable)} unreadable images left out: {images.list_unreadable()}")
    shown, spec = first[: settings.num_pictures], images.spec
    return AuditedModel(
        name, model, images, result, take_snapshot(model, shown, name=label, mean=spec.mean, std=spec.std)
    )


def compare_with_teacher(student: AuditedModel, teacher: AuditedModel) -> list[dict]:
    """Compares the features of two audited models, through the projectors in the student's folder if there are any.

    Args:
        student: The model that is compared.
        teacher: The model with which it is compared.

    Returns:
        See :func:`singer_hf.inspection.measure.feature_comparison.compare_features`.
    """
    size, device = tuple(student.images.first().shape[-2:]), next(teacher.model.parameters()).device
    specs = student.images.spec, teacher.images.spec
    normalizations = ((spec.mean, spec.std) for spec in specs)
    grid = view_vit(student.model).grid(*size)
    teacher_input = TeacherInput(view_vit(teacher.model), size, grid, *normalizations).to(device)
    file = Path(student.path, "projectors", "model.safetensors")
    return compare_features(
        student.model,
        teacher.model,
        student.images,
        projectors=load_projectors(file) if file.is_file() else None,
        teacher_input=lambda pixel_values: teacher_input(pixel_values.to(device)),
    )


def write_report(folder: Path, models: list[AuditedModel], comparisons: dict[str, list[dict]], *, source: str) -> None:
    """Writes audit.json, figures/*.png and report.html.

    Args:
        folder: Folder with a subfolder ``figures``.
        models: The audited models.
        comparisons: Title -> result of :func:`compare_with_teacher`.
        source: Name of the dataset and seed of the sample.
    """
    results = [entry.result for entry in models]
    figures = draw_report_figures(results, [entry.snapshot for entry in models])
    for entry in figures:
        (folder / "figures" / f"{entry.name}.png").write_bytes(figure_png(entry.figure))
    data = {"models": [result.to_dict() for result in results], "comparisons": comparisons}
    (folder / "audit.json").write_text(json.dumps(data, indent=1) + "\n")
    subtitle = f"{results[0].num_images} images of {source}, {date.today().isoformat()}"
    page = render_report(results, figures, subtitle=subtitle, comparisons=comparisons)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _prepare_folder(path: str) -> Path:
    folder = Path(path)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`output_dir` must be a folder that can be written, got {path!r}: {error}") from error
    if not os.access(folder / "figures", os.W_OK):
        raise ValueError(f"`output_dir` must be a folder that can be written, got {path!r}")
    return folder
