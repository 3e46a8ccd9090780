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


class Evaluation(NamedTuple):
    """One metric of a student, e.g. ``Evaluation("classification", "imagenet-1k", "top1", 0.7059)``.

    ``task`` is a key of ``HUB_TASKS`` or a task name of the Hub; ``dataset`` is a Hub id or any name.
    """

    task: str
    dataset: str
    metric: str
    value: float


def eval_results(evaluations: Iterable[tuple[str, str, str, float]]) -> list[EvalResult]:
    """Metrics in the form of the Hub's ``model-index``, without those that are not finite: the Hub rejects them."""
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
