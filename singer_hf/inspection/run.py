"""A complete audit run: audits one or several models, compares them, and writes the report."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.cards.privacy import without_paths
from singer_hf.distillation.teacher_input import TeacherInput
from singer_hf.inspection.inputs import AuditSettings, ImageBatches, load_image_batches
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.feature_comparison import compare_features, load_projectors
from singer_hf.inspection.measure.nullspace_report import report_nullspace
from singer_hf.inspection.measure.snapshots import Snapshot, take_snapshot
from singer_hf.inspection.report.page import draw_report_figures, figure_png, render_report
from singer_hf.inspection.report.verdict import judge
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import evaluation_mode
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
    labelled = zip(names, labels_of(names), strict=True)
    models = [audit_model(load_model(name), name, label, settings) for name, label in labelled]
    comparisons = {
        f"{student.result.name} compared with {models[0].result.name}": compare_with_teacher(student, models[0])
        for student in models[1:]
    }
    source = Path(without_paths(settings.dataset_name or "drawn scenes")).name
    write_report(folder, models, comparisons, source=f"{source}, seed {settings.seed}")
    return [judge(entry.result).headline for entry in models]


def labels_of(names: list[str]) -> list[str]:
    """Returns different names of models for tables and figures: their last parts, if possible, and no absolute paths.

    Args:
        names: Folders or Hub ids.
    """
    shown = [without_paths(name) for name in names]
    last = [Path(name).name for name in shown]
    labels = last if len(set(last)) == len(last) else shown
    return [
        f"{label} ({labels[:index].count(label) + 1})" if labels.count(label) > 1 else label
        for index, label in enumerate(labels)
    ]


def audit_model(model: nn.Module, name: str, label: str, settings: AuditSettings) -> AuditedModel:
    """Loads the images for a model and audits it.

    Args:
        model: The model, with its adapter if the settings name one.
        name: Folder or Hub id of the model.
        label: Name of the model in tables and figures.
        settings: The settings.

    Raises:
        ValueError: If no image can be read, or the model does not take images of their size.
    """
    images = load_image_batches(name, settings, next(model.parameters()).device)
    rule = OutlierRule(mad_factor=settings.mad_factor, absolute=settings.absolute_threshold)
    first = images.first()
    check_size(model, first, label)
    result = audit(model, images, rule=rule, name=label)
    if settings.adapter_name_or_path is not None:
        result.adapter = report_nullspace(model, [first])
    if images.unreadable:
        note = f"{len(images.unreadable)} unreadable images left out: {images.list_unreadable()}"
        result.notes.append(without_paths(note))
    shown, spec = first[: settings.num_pictures], images.spec
    return AuditedModel(
        name, model, images, result, take_snapshot(model, shown, name=label, mean=spec.mean, std=spec.std)
    )


@torch.no_grad()
def check_size(model: nn.Module, pixel_values: Tensor, label: str) -> None:
    """Checks that a model takes images of this size.

    Args:
        model: The model.
        pixel_values: Images (B, 3, H, W), of which one is tried.
        label: Name of the model in the message.

    Raises:
        ValueError: If it does not.
    """
    view = view_vit(model)
    weight = view.patch_embedding.weight
    try:
        with evaluation_mode(model):
            FeatureCapture(view, [0])(pixel_values[:1].to(weight.device, weight.dtype))
    except torch.OutOfMemoryError:
        pass  # the audit itself goes on with smaller batches
    except RuntimeError as error:
        size, patch = (
            " x ".join(map(str, pair)) for pair in (pixel_values.shape[-2:], view.patch_embedding.kernel_size)
        )
        raise ValueError(
            f"`image_size` must suit the model {label!r} with its patches of {patch} pixels, got images of {size} "
            f"pixels: {error}"
        ) from error


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
