"""Metadata of a model card in the form the Hub requires: ids, evaluation results, the YAML block."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# Short names of this package's evaluators -> task names of the Hub.
HUB_TASKS = {
    "classification": "image-classification",
    "knn": "image-classification",
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
}
# Names under which `datasets` loads local files: none of them is a data set on the Hub.
FILE_FORMATS = {"arrow", "csv", "imagefolder", "json", "parquet", "webdataset"}
# Type of data that are no repository of the Hub: a folder's name would point to somebody else's data there.
_NOT_ON_HUB = "custom"


class Evaluation(NamedTuple):
    """One metric of a student, e.g. ``Evaluation("classification", "ILSVRC/imagenet-1k", "top1", 0.7059, 50000)``.

    ``task`` is a key of ``HUB_TASKS`` or a task name of the Hub; ``dataset`` is a Hub id, a folder or any name; ``n``
    is the number of test images; ``low`` and ``high`` are the ends of the 95 % interval.
    """

    task: str
    dataset: str
    metric: str
    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None


def eval_results(evaluations: Iterable[tuple]) -> list[EvalResult]:
    """Metrics in the form of the Hub's ``model-index``, without those that are not finite: the Hub rejects them."""
    rows = [Evaluation(*row) for row in evaluations]
    return [_eval_result(row) for row in rows if math.isfinite(row.value)]


def _eval_result(row: Evaluation) -> EvalResult:
    name = data_name(row.dataset)
    on_hub = "/" in name and hub_id(name)
    known = {"n": row.n, "low": row.low, "high": row.high}
    known = {key: value for key, value in known.items() if value is not None and math.isfinite(value)}
    return EvalResult(
        task_type=HUB_TASKS.get(row.task, row.task),
        task_name=row.task,
        dataset_type=name if on_hub else _NOT_ON_HUB,
        # The Hub takes metrics of one task, type and configuration for metrics on the same data.
        dataset_config=None if on_hub else name,
        dataset_name=name,
        metric_type=row.metric,
        metric_name=f"{row.metric} ({row.task})",
        metric_value=float(row.value),
        metric_args=known or None,
    )


def evaluation_of(result: EvalResult) -> Evaluation:
    """The metric that :func:`eval_results` has made a result of, also after the card was saved and loaded."""
    task = re.fullmatch(r".* \((.*)\)", result.metric_name or "")
    known = {name: (result.metric_args or {}).get(name) for name in ("n", "low", "high")}
    return Evaluation(
        task[1] if task else result.task_name or result.task_type,
        result.dataset_name,
        result.metric_type,
        result.metric_value,
        **known,
    )


def data_name(dataset: str) -> str:
    """A data set as a card shows it: of a local folder the last part of its path."""
    return Path(dataset).name if Path(dataset).exists() else dataset


def hub_id(name: str, folders: bool = True) -> str | None:
    """``name`` if it is the id of a Hub repository; None for a path, an existing local folder or an empty name.

    Args:
        name: The name that was passed to ``from_pretrained`` or ``load_dataset``.
        folders: Whether a folder of that name in the working directory takes precedence, as in ``from_pretrained``.
    """
    if not name or name in FILE_FORMATS or (folders and Path(name).exists()):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
