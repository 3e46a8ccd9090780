"""The steps of an audit: one model on its images, and its comparison with the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn

from singer_hf.cards.privacy import without_paths
from singer_hf.data.batches.image_batches import ImageBatches, PixelBatches
from singer_hf.distillation.teacher_input import TeacherInput
from singer_hf.inspection.images import batches_for
from singer_hf.inspection.inputs import AuditOptions
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.feature_comparison import compare_features, load_projectors
from singer_hf.inspection.measure.nullspace_report import report_nullspace
from singer_hf.inspection.measure.snapshots import Snapshot, take_snapshot
from singer_hf.inspection.models import NamedModel
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.structure import view_vit


@dataclass(frozen=True)
class AuditedModel:
    """A model with its audit.

    Attributes:
        named: The model.
        images: The images, normalised for the model.
        result: The audit.
    """

    named: NamedModel
    images: ImageBatches | PixelBatches
    result: AuditResult

    def snapshot(self, indices: Sequence[int], inline: bool) -> Snapshot:
        """Returns the features of some images for the figures.

        Args:
            indices: Places of the images among the readable ones.
            inline: Whether adapters stay active.
        """
        spec = self.images.spec
        normalization = {} if spec is None else {"mean": spec.mean, "std": spec.std}
        pixel_values = self.images.pick(indices)
        return take_snapshot(self.named.model, pixel_values, name=self.result.name, inline=inline, **normalization)


def audit_model(named: NamedModel, rows: Dataset | list[Tensor], options: AuditOptions) -> AuditedModel:
    """Audits a model.

    Args:
        named: The model.
        rows: The images, see :func:`singer_hf.inspection.images.load_images`; tensors are (B, 3, H, W).
        options: The options.

    Raises:
        ValueError: If no image can be read, or the model does not take images of their size.
    """
    images = batches_for(rows, named, options)
    first = images.first()
    check_size(named.model, first, named.label)
    kwargs = {"rule": options.rule, "inline": options.inline, "progress": options.progress}
    result = audit(named.model, images, name=named.label, **kwargs)
    result.role = named.role
    if find_singer_layers(named.model) and not options.inline:
        result.adapter = report_nullspace(named.model, [first])
    if options.inline:
        result.notes.append("measured as the model runs: blocks with an adapter are refined, and later ones read that")
    if images.unreadable:
        note = f"{len(images.unreadable)} unreadable images left out: {images.list_unreadable()}"
        result.notes.append(without_paths(note))
    return AuditedModel(named, images, result)


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


def compare_with_teacher(student: AuditedModel, teacher: AuditedModel, progress: bool = True) -> list[dict]:
    """Compares the features of two audited models, through the projectors in the student's folder if they fit.

    What cannot be compared becomes a note of the student's audit instead of an error, as both audits are done.

    Args:
        student: The model that is compared.
        teacher: The model with which it is compared.
        progress: Whether to show a progress bar.

    Returns:
        See :func:`singer_hf.inspection.measure.feature_comparison.compare_features`; empty if it is impossible.
    """
    try:
        return compare_features(
            student.named.model,
            teacher.named.model,
            student.images,
            projectors=_fitting_projectors(student, teacher),
            teacher_input=_teacher_input(student, teacher),
            progress=progress,
        )
    except (ValueError, RuntimeError) as error:
        student.result.notes.append(without_paths(f"not compared with {teacher.result.name}: {error}"))
        return []


def _teacher_input(student: AuditedModel, teacher: AuditedModel) -> object:
    """Converts images for the student to images for the teacher; None for pixel values, which both get as they are."""
    specs = student.images.spec, teacher.images.spec
    if None in specs:
        return None
    size, device = tuple(student.images.first().shape[-2:]), next(teacher.named.model.parameters()).device
    grid = view_vit(student.named.model).grid(*size)
    normalizations = ((spec.mean, spec.std) for spec in specs)
    convert = TeacherInput(view_vit(teacher.named.model), size, grid, *normalizations).to(device)
    return lambda pixel_values: convert(pixel_values.to(device))


def _fitting_projectors(student: AuditedModel, teacher: AuditedModel) -> dict[str, nn.Linear] | None:
    """The projectors that lead from the student's width to the teacher's; a note says why others are left out."""
    file = student.named.projectors
    if file is None:
        return None
    widths = student.result.hidden_size, teacher.result.hidden_size
    try:
        projectors = load_projectors(file)
    except (ValueError, OSError) as error:
        return _leave_out(student, str(error))
    wrong = {(p.in_features, p.out_features) for p in projectors.values()} - {widths}
    if wrong:
        found, wanted = (" to ".join(map(str, pair)) for pair in (sorted(wrong)[0], widths))
        return _leave_out(student, f"they lead from width {found}, not {wanted}; another teacher?")
    return projectors


def _leave_out(student: AuditedModel, reason: str) -> None:
    student.result.notes.append(without_paths(f"projectors of {Path(student.result.name).name} left out: {reason}"))
