"""The model card of a distilled student: plain data in, a card for the Hub out."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from singer_hf.cards.markdown import markdown_table
from singer_hf.cards.privacy import public_settings, without_paths
from singer_hf.version import __version__

TEMPLATE = Path(__file__).with_name("templates") / "student_card.md"
TAGS = ["singer-hf", "knowledge-distillation", "vision-transformer", "feature-extraction"]
# Short names of this package's evaluators -> task names of the Hub.
HUB_TASKS = {
    "classification": "image-classification",
    "knn": "image-classification",
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
}
# Names under which `datasets` reads local files: no data set on the Hub.
FILE_FORMATS = {"arrow", "csv", "imagefolder", "json", "parquet", "webdataset"}
LOSS_ROWS = 6  # points of the loss curve that are shown
_FLOATS = ".4g"


def library_versions() -> dict[str, str]:
    """Versions of the libraries a student depends on, by distribution name; those not installed are left out."""
    versions = {"singer-hf": __version__}
    for library in ("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub"):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


class Evaluation(NamedTuple):
    """One figure: e.g. ``Evaluation("classification", "imagenet-1k", "top1", 0.7059)``.

    ``task`` is a short name of ``HUB_TASKS`` or a task name of the Hub; ``dataset`` a Hub id or any name.
    """

    task: str
    dataset: str
    metric: str
    value: float


class CardMethod(NamedTuple):
    """How a student without a SiNGER adapter was distilled.

    ``tag`` is the method's tag on the Hub; ``text`` ends the sentence "A student that was distilled from its teacher".
    """

    tag: str
    text: str


@dataclass(frozen=True)
class CardInfo:
    """What a run says about its student. Everything may be left out; what is left out does not stand in the card.

    Names of models and data may be Hub ids or local folders: of a folder only its own name is shown, no path.

    Attributes:
        student_class: Class of the student, e.g. ``"ViTModel"``.
        student: Checkpoint the student started from; empty when it started from random weights.
        repo_id: Where the student is (going to be) on the Hub, ``user/name``.
        teacher: Hub id or folder of the teacher.
        teacher_class: Class of the teacher, named where it has neither id nor folder.
        dataset: Hub id or folder of the images.
        dataset_revision: Revision of the data set on the Hub.
        synthetic_data: Whether the images are the drawn scenes of the demo.
        has_adapter: Whether the folder holds a SiNGER adapter of the teacher: the method was SiNGER.
        method: The method of a run without an adapter; None: FitNet.
        image_size: Side of the student's input in pixels.
        settings: Settings that differ from the defaults, by name. Folders, tokens and account names are left out.
        layer_pairs: (teacher block, student block), 0-based.
        loss_curve: Points ``{"step": int, component: float, ...}`` in order; a few of them are shown.
        norms: Outlier ratio (99th percentile / median of the patch token norms) by name of the model.
        evaluations: Figures for the table and, where finite, for ``model-index``.
        loss_figure: File of the loss curve in the folder, relative to it.
        norm_figure: File of the norm maps in the folder, relative to it.
        license: Licence as the Hub writes it, e.g. ``"apache-2.0"``.
        versions: Version by library; by default those at hand.
    """

    student_class: str = ""
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
    evaluations: Sequence[tuple[str, str, str, float]] = ()
    loss_figure: str = ""
    norm_figure: str = ""
    license: str = ""
    versions: Mapping[str, str] = field(default_factory=library_versions)


def student_card(info: CardInfo) -> ModelCard:
    """The card of a student: YAML metadata and text. ``card.save(path)`` or ``str(card)``.

    No absolute path, token or home folder of this machine gets into it, whatever stands in ``info``.

    Raises:
        ValueError: ``info.repo_id`` is no repository id.
    """
    if info.repo_id and hub_id(info.repo_id, folders=False) is None:
        raise ValueError(f"`repo_id` must be of the form 'user/name', got {info.repo_id!r}.")
    clean = _without_paths(info)
    sources = {name: hub_id(getattr(info, name)) for name in ("teacher", "student", "dataset")}
    name = (clean.repo_id or clean.student_class or "student").split("/")[-1]
    method = None if clean.has_adapter or clean.method is None else CardMethod(*clean.method)
    card = ModelCard.from_template(
        _metadata(clean, name, sources, method),
        template_path=str(TEMPLATE),
        info=clean,
        name=name,
        method=method,
        source=clean.repo_id or "path/to/this/folder",
        teacher_source=sources["teacher"] or "path/to/the/teacher",
        teacher=_origin(info.teacher, clean.teacher, sources["teacher"], clean.teacher_class),
        student=_origin(info.student, clean.student, sources["student"]),
        training_table=markdown_table(("", ""), _training_rows(clean, sources["dataset"], info.dataset), _FLOATS),
        settings_table=markdown_table(("Setting", "Value"), ((f"`{k}`", f"`{v}`") for k, v in clean.settings.items())),
        loss_table=_loss_table(clean.loss_curve),
        norm_table=markdown_table(("Features of", "p99 / median norm"), clean.norms.items(), _FLOATS),
        evaluation_table=markdown_table(("Task", "Data", "Metric", "Value"), clean.evaluations, _FLOATS),
        versions=", ".join(f"{library} {number}" for library, number in clean.versions.items()),
        package_version=__version__,
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


def eval_results(evaluations: Iterable[tuple[str, str, str, float]]) -> list[EvalResult]:
    """Figures as the Hub's ``model-index`` takes them; those that are not finite are left out: it refuses them."""
    rows = [Evaluation(*row) for row in evaluations]
    return [
        EvalResult(
            task_type=HUB_TASKS.get(row.task, row.task),
            task_name=row.task,
            dataset_type=re.sub(r"[^\w./-]+", "-", row.dataset).lower(),
            dataset_name=row.dataset,
            metric_type=row.metric,
            metric_name=f"{row.metric} ({row.task})",
            metric_value=float(row.value),
        )
        for row in rows
        if math.isfinite(row.value)
    ]


def hub_id(name: str, folders: bool = True) -> str | None:
    """``name`` if it is the id of something on the Hub; None for a path, an existing local folder or nothing.

    Args:
        name: What was given to ``from_pretrained`` or ``load_dataset``.
        folders: Whether a folder of that name in the working directory counts, as it does for ``from_pretrained``.
    """
    if not name or name in FILE_FORMATS or (folders and Path(name).exists()):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _metadata(
    info: CardInfo, name: str, sources: Mapping[str, str | None], method: CardMethod | None
) -> ModelCardData:
    bases = [source for source in (sources["teacher"], sources["student"]) if source]
    tag = "singer" if info.has_adapter else method.tag if method else "fitnet"
    return ModelCardData(
        base_model=list(dict.fromkeys(bases)) or None,
        datasets=[sources["dataset"]] if sources["dataset"] else None,
        library_name="transformers",
        license=info.license or None,
        pipeline_tag="image-feature-extraction",
        tags=[*TAGS, tag],
        model_name=name,
        eval_results=eval_results(info.evaluations) or None,
    )


def _training_rows(info: CardInfo, dataset_id: str | None, given_dataset: str) -> list[tuple[str, Any]]:
    pairs = ", ".join(f"{teacher} → {student}" for teacher, student in info.layer_pairs)
    link = f"[{dataset_id}](https://huggingface.co/datasets/{dataset_id})" if dataset_id else ""
    rows = [
        ("Data", link or _origin(given_dataset, info.dataset, None)),
        ("Revision of the data", f"`{info.dataset_revision}`" if info.dataset_revision else ""),
        ("Images", info.num_images),
        ("Image size", f"{info.image_size} x {info.image_size}" if info.image_size else ""),
        ("Epochs", info.num_epochs),
        ("Steps", info.num_steps),
        ("Blocks, teacher → student, counted from 0", pairs),
    ]
    return [row for row in rows if row[1] not in (None, "")]


def _loss_table(curve: Sequence[Mapping[str, float]]) -> str:
    """The first, the last and evenly spaced points between them, at most ``LOSS_ROWS``."""
    count = min(LOSS_ROWS, len(curve))
    points = [curve[round(i * (len(curve) - 1) / max(count - 1, 1))] for i in range(count)]
    names = list(dict.fromkeys(["step", *(name for point in points for name in point)]))
    return markdown_table(names, ([point.get(name, "") for name in names] for point in points), _FLOATS)


def _origin(given: str, shown: str, identifier: str | None, class_name: str = "") -> str:
    """A model or data set in words: a link, the words that were given, the name of a local folder, or its class.

    ``shown`` is ``given`` without its path.
    """
    if identifier:
        return f"[{identifier}](https://huggingface.co/{identifier})"
    if " " in given and PureWindowsPath(given).name == given and not Path(given).exists():
        return shown
    if shown:
        return f"the local folder `{PureWindowsPath(shown).name}`"
    return f"a `{class_name}`" if class_name else ""


def _without_paths(info: CardInfo) -> CardInfo:
    """A copy in which every path is cut down to its last part and settings of the machine are gone."""
    values = {entry.name: getattr(info, entry.name) for entry in fields(info)}
    values["settings"] = public_settings(info.settings)
    return replace(info, **{name: without_paths(value) for name, value in values.items()})
