"""The model card of a distilled student: plain data in, a card for the Hub out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import quote

from huggingface_hub import ModelCard, ModelCardData

from singer_hf.cards.drawing import spread
from singer_hf.cards.evaluation_section import evaluation_section
from singer_hf.cards.hub_metadata import eval_results, hub_id
from singer_hf.cards.markdown import code, markdown_table, plain_text
from singer_hf.cards.privacy import without_paths
from singer_hf.version import __version__

TEMPLATE = Path(__file__).with_name("templates") / "student_card.md"
TAGS = ["singer-hf", "knowledge-distillation", "vision-transformer", "feature-extraction"]
LOSS_ROWS = 6  # points of the loss curve in the table
_FLOATS = ".4g"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a student depends on, by distribution name, without those not installed."""
    versions = {"singer-hf": __version__}
    for library in ("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub"):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


class CardMethod(NamedTuple):
    """The text of a distillation method on the card.

    ``tag`` is the tag of the method on the Hub. ``text`` completes the sentence "A student that was distilled from
    its teacher", ends with a full stop and names its source (paper) where there is one. ``label`` is its name in the
    title.
    """

    tag: str
    text: str
    label: str = ""


@dataclass(frozen=True)
class CardInfo:
    """The content of a student's card. Every field is optional; a section without content is omitted.

    Names of models and data may be Hub ids or local folders. The card shows the last part of a folder's path only.

    Attributes:
        student_name: Architecture of the student in the title, e.g. ``"vit-small"``.
        student_class: Class of the student, e.g. ``"ViTModel"``.
        without_pooler: Whether the class adds a pooling layer for which the folder has no weights, unless told not to.
        student: Checkpoint from which the student was initialised; empty for random weights.
        repo_id: Repository of the student on the Hub, ``user/name``.
        teacher: Hub id or folder of the teacher.
        teacher_class: Class of the teacher, shown if it has neither id nor folder.
        dataset: Hub id or folder of the images.
        dataset_revision: Revision of the data set on the Hub.
        synthetic_data: Whether the images are the drawn scenes of the demo.
        has_adapter: Whether there is a folder ``singer`` with the teacher's adapter: the card shows how to load it.
        method: Tag and text of the distillation method; None: the card names no method.
        num_images: Training images.
        num_steps: Optimiser steps.
        num_epochs: Passes over the images.
        image_size: Side of the student's input in pixels.
        settings: Settings to show, by name. Values are shown without paths and access tokens.
        layer_pairs: (teacher block, student block), 0-based.
        loss_curve: Points ``{"step": int, component: float, ...}`` in order; the table shows at most 6 of them.
        norms: Outlier ratio (99th percentile / median of the patch token norms) by name of the model.
        evaluations: Rows of :class:`singer_hf.cards.hub_metadata.Evaluation`, of which the last three values may be
            left out, for the table and, if finite, for ``model-index``.
        loss_figure: File of the loss curve, relative to the folder.
        norm_figure: File of the norm maps, relative to the folder.
        license: Licence identifier of the Hub, e.g. ``"apache-2.0"``.
        teacher_license: Licence of the teacher, shown where the student has none.
        versions: Version by library; by default the installed ones.
    """

    student_name: str = ""
    student_class: str = ""
    without_pooler: bool = False
    student: str = ""
    repo_id: str = ""
    teacher: str = ""
    teacher_class: str = ""
    dataset: str = ""
    dataset_revision: str = ""
    synthetic_data: bool = False
    has_adapter: bool = True
    method: CardMethod | None = None
    num_images: int | None = None
    num_steps: int | None = None
    num_epochs: float | None = None
    image_size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    layer_pairs: Sequence[tuple[int, int]] = ()
    loss_curve: Sequence[Mapping[str, float]] = ()
    norms: Mapping[str, float] = field(default_factory=dict)
    evaluations: Sequence[tuple] = ()
    loss_figure: str = ""
    norm_figure: str = ""
    license: str = ""
    teacher_license: str = ""
    versions: Mapping[str, str] = field(default_factory=library_versions)


def student_card(info: CardInfo) -> ModelCard:
    """The card of a student: YAML metadata and text. Write it with ``card.save(path)`` or ``str(card)``.

    The card contains no absolute path, access token or home folder of this machine, whatever ``info`` contains. Names
    and settings are shown as text: HTML and markdown in them has no effect. Only ``info.method.text`` is markdown.

    Raises:
        ValueError: If ``info.repo_id`` is not a repository id.
    """
    if info.repo_id and hub_id(info.repo_id, folders=False) is None:
        raise ValueError(f"`repo_id` must be of the form 'user/name', got {info.repo_id!r}.")
    public = replace(info, **{entry.name: without_paths(getattr(info, entry.name)) for entry in fields(info)})
    method = CardMethod(*public.method) if public.method else None
    ids = {name: hub_id(getattr(info, name)) for name in ("teacher", "student", "dataset")}
    title = _title(public, method)
    card = ModelCard.from_template(
        _metadata(public, public.repo_id.split("/")[-1] or title, ids, method),
        template_path=str(TEMPLATE),
        info=public,
        title=plain_text(title),
        code=code,
        loss_figure=quote(public.loss_figure),
        norm_figure=quote(public.norm_figure),
        method=method,
        source=public.repo_id or "path/to/this/folder",
        teacher_source=ids["teacher"] or "path/to/the/teacher",
        teacher=_origin(info.teacher, public.teacher, ids["teacher"], public.teacher_class),
        student=_origin(info.student, public.student, ids["student"]),
        training_table=markdown_table(("", ""), _training_rows(public, ids["dataset"], info.dataset), _FLOATS),
        settings_table=markdown_table(("Setting", "Value"), ((code(k), code(v)) for k, v in public.settings.items())),
        loss_table=_loss_table(public.loss_curve),
        norm_table=markdown_table(("Features of", "p99 / median norm"), _as_text(public.norms.items()), _FLOATS),
        evaluation=evaluation_section(public.evaluations),
        versions=plain_text(", ".join(f"{library} {number}" for library, number in public.versions.items())),
        package_version=__version__,
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


def _title(info: CardInfo, method: CardMethod | None) -> str:
    """What the student is, in one line: ``vit-small distilled from dinov2-large (SiNGER)``."""
    student = info.student_name or PureWindowsPath(info.student).name or info.student_class or "student"
    teacher = info.teacher if " " in info.teacher else PureWindowsPath(info.teacher).name
    teacher = teacher or info.teacher_class
    origin = f" distilled from {teacher}" if teacher else ""
    return f"{student}{origin}{f' ({method.label})' if method and method.label else ''}"


def _metadata(info: CardInfo, name: str, ids: Mapping[str, str | None], method: CardMethod | None) -> ModelCardData:
    bases = [ids[role] for role in ("teacher", "student") if ids[role]]
    return ModelCardData(
        base_model=list(dict.fromkeys(bases)) or None,
        # Of two bases the Hub would make a merge. A distilled model is listed with the fine-tuned ones there.
        base_model_relation="finetune" if bases else None,
        datasets=[ids["dataset"]] if ids["dataset"] else None,
        library_name="transformers",
        license=info.license or None,
        pipeline_tag="image-feature-extraction",
        tags=[*TAGS, *([method.tag] if method else [])],
        model_name=name,
        eval_results=eval_results(info.evaluations) or None,
    )


def _training_rows(info: CardInfo, dataset_id: str | None, given_dataset: str) -> list[tuple[str, Any]]:
    pairs = ", ".join(f"{teacher} → {student}" for teacher, student in info.layer_pairs)
    link = f"[{dataset_id}](https://huggingface.co/datasets/{dataset_id})" if dataset_id else ""
    rows = [
        ("Data", link or _origin(given_dataset, info.dataset, None)),
        ("Revision of the data", code(info.dataset_revision)),
        ("Images", info.num_images),
        ("Image size", f"{info.image_size} x {info.image_size}" if info.image_size else ""),
        ("Epochs", info.num_epochs),
        ("Steps", info.num_steps),
        ("Blocks, teacher → student, counted from 0", pairs),
    ]
    return [row for row in rows if row[1] not in (None, "")]


def _loss_table(curve: Sequence[Mapping[str, float]]) -> str:
    points = [curve[index] for index in spread(len(curve), LOSS_ROWS)]
    names = list(dict.fromkeys(["step", *(name for point in points for name in point)]))
    rows = _as_text([point.get(name, "") for name in names] for point in points)
    return markdown_table(map(plain_text, names), rows, _FLOATS)


def _as_text(rows: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """Rows of a table with names as text and numbers as they are."""
    return [[plain_text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]


def _origin(given: str, shown: str, identifier: str | None, class_name: str = "") -> str:
    """A model or data set in words: a link, the given words, the name of a local folder, or its class.

    ``shown`` is ``given`` without its path.
    """
    if identifier:
        return f"[{identifier}](https://huggingface.co/{identifier})"
    if " " in given and PureWindowsPath(given).name == given and not Path(given).exists():
        return plain_text(shown)
    if shown:
        return f"the local folder {code(PureWindowsPath(shown).name)}"
    return f"a {code(class_name)}" if class_name else ""
