"""The public function that audits models: any form of models, any form of images."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.inspection.audit_report import AuditReport, compared
from singer_hf.inspection.images import load_images, name_of_source
from singer_hf.inspection.inputs import AuditOptions
from singer_hf.inspection.models import load_models, on_device
from singer_hf.inspection.run import audit_model, compare_with_teacher

Model = nn.Module | str | os.PathLike


def audit(
    model: Model | Sequence[Model],
    images: Any,
    *,
    adapter_name_or_path: str | os.PathLike | None = None,
    processor: Any = None,
    split: str = "train",
    image_column: str | None = None,
    max_samples: int = 500,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    rule: OutlierRule | None = None,
    inline: bool = False,
    num_pictures: int = 3,
    batch_size: int = 16,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> AuditReport:
    """Audits vision transformers: which patch tokens are artifacts, in which blocks, how strong, and what to do.

    Args:
        model: A module, a local folder or a Hub id, or a list of these: the first is the teacher with which the
            others are compared. SiNGER adapters in a module are audited too.
        images: Images such as the model will see, without labels: a ``datasets.Dataset`` with an image column, a
            folder or Hub id of one, PIL images, or pixel values (B, 3, H, W) normalised for the models, batches of
            them or dicts with ``"pixel_values"``, such as from a ``DataLoader``.
        adapter_name_or_path: SiNGER adapter for a model that is a folder or Hub id.
        processor: Image processor for all models, or the folder or Hub id of one; None takes that of each model.
        split: Split of a folder or Hub id.
        image_column: Column with the images; None detects it.
        max_samples: At most this many images, drawn by the seed; of pixel values the first ones.
        seed: Seed of the sample.
        image_size: (height, width) in pixels; None takes that of the image processor.
        rule: The outlier rule; by default median + 10 MAD within the image.
        inline: Whether adapters stay active: the audit of a cleaned teacher, in which all blocks behind an adapter
            read refined tokens.
        num_pictures: Number of images in the figures, at most 64: those with the longest patch tokens.
        batch_size: Images per batch; halved if memory is too small.
        num_workers: Processes that load images.
        device: Torch device. None: where a module is; for a folder or Hub id a GPU if there is one.
        progress: Whether to show progress bars.

    Returns:
        The report: ``verdict``, ``results``, ``save(folder)``; in a notebook it shows its page.

    Raises:
        ValueError: If an option is out of its range, no image can be read, or a model is no plain vision transformer
            or does not take images of this size.
        FileNotFoundError: If a model or the dataset does not exist.
        MemoryError: If a single image does not fit in memory.
    """
    options = AuditOptions(
        processor=processor,
        split=split,
        image_column=image_column,
        max_samples=max_samples,
        seed=seed,
        image_size=image_size,
        rule=rule or OutlierRule(),
        inline=inline,
        num_pictures=num_pictures,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
    )
    return run_audit(model, images, options, adapter_name_or_path=adapter_name_or_path, device=device)


def run_audit(
    model: Model | Sequence[Model],
    images: Any,
    options: AuditOptions,
    *,
    adapter_name_or_path: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    source: str | None = None,
) -> AuditReport:
    """Audits models with given options, see :func:`audit`.

    Args:
        model: See :func:`audit`.
        images: See :func:`audit`.
        options: The options.
        adapter_name_or_path: See :func:`audit`.
        device: See :func:`audit`.
        source: Name of the images in the report, if they have no name of their own.
    """
    models = load_models(model, adapter_name_or_path, device)
    rows = load_images(images, options)
    with on_device(models, device):
        audited = [audit_model(named, rows, options) for named in models]
        pairs = [(entry, compare_with_teacher(entry, audited[0], options.progress)) for entry in audited[1:]]
        comparisons = {compared(one.result.name, audited[0].result.name): found for one, found in pairs if found}
        shown = [ranked["image"] for ranked in audited[0].result.worst_images[: options.num_pictures]]
        snapshots = [entry.snapshot(shown, options.inline) for entry in audited]
    results = [entry.result for entry in audited]
    return AuditReport(results, comparisons, source or name_of_source(images, options), snapshots)
