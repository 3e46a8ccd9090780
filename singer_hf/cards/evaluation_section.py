"""The section of a student's card that says how it was evaluated: the metrics of ``model-index`` as a table."""

import math
import re
from collections.abc import Iterable
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from singer_hf.cards.hub_metadata import Evaluation, data_name, eval_results, evaluation_of
from singer_hf.cards.markdown import markdown_table, plain_text

_HEADING = "## Evaluation"
_SECTION = re.compile(rf"^{_HEADING}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_HEADER = ("Task", "Data", "Metric", "Value", "95 % interval", "Images")


def evaluation_section(evaluations: Iterable[tuple]) -> str:
    """Heading and table of the metrics, or the sentence that there are none.

    Args:
        evaluations: Rows of :class:`singer_hf.cards.hub_metadata.Evaluation`; those not finite are shown too.
    """
    rows = [_cells(Evaluation(*row)) for row in evaluations]
    if not rows:
        return f"{_HEADING}\n\nIt was not evaluated on any task."
    table = markdown_table(_HEADER, rows, ".4g")
    return f"{_HEADING}\n\n{table}\n\nNothing else than these metrics was measured."


def add_evaluations(card: ModelCard, evaluations: Iterable[tuple]) -> None:
    """Adds metrics to a card, in its metadata and in its text; those of the same task, data and metric are replaced.

    Args:
        card: A student's card.
        evaluations: Rows of :class:`singer_hf.cards.hub_metadata.Evaluation`.
    """
    new = eval_results(evaluations)
    kept = [old for old in card.data.eval_results or () if not any(_is_same(old, item) for item in new)]
    card.data.eval_results = [*kept, *new]
    section = evaluation_section(map(evaluation_of, card.data.eval_results))
    text = _SECTION.sub(lambda _: f"{section}\n\n", card.text, count=1)
    card.text = text if _SECTION.search(card.text) else f"{text.rstrip()}\n\n{section}\n"


def _cells(row: Evaluation) -> list[Any]:
    interval = "" if row.low is None or not math.isfinite(row.low) else f"{row.low:.4g} to {row.high:.4g}"
    return [*map(plain_text, (row.task, data_name(row.dataset), row.metric)), row.value, interval, row.n or ""]


def _is_same(first: EvalResult, second: EvalResult) -> bool:
    names = ("task_type", "dataset_name", "metric_name")  # of tasks on the same data the Hub keeps one name
    return all(getattr(first, name) == getattr(second, name) for name in names)
