"""The main metrics of an evaluation in a student's model card."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard

from singer_hf.cards.evaluation_section import add_evaluations
from singer_hf.cards.hub_metadata import Evaluation
from singer_hf.evaluation.results.result import Result

_TAG = "singer-hf"


def has_student_card(folder: str | Path) -> bool:
    """Returns whether ``folder`` is the local folder of a student, with a README.md by the trainer of this package."""
    file = Path(folder) / "README.md"
    return file.is_file() and _TAG in (ModelCard.load(file).data.tags or ())


def write_to_card(folder: str | Path, results: Sequence[Result]) -> None:
    """Writes the main metrics into the card in ``folder``, metadata and text, and replaces older ones.

    Args:
        folder: Folder of a student with its README.md.
        results: Results of this student.

    Raises:
        ValueError: If ``folder`` has no card of a student.
    """
    if not has_student_card(folder):
        raise ValueError(
            f"`folder` must be a student's folder with the README.md of its training, got {str(folder)!r}"
        )
    card = ModelCard.load(Path(folder) / "README.md")
    rows = [
        Evaluation(
            *(result.task, result.dataset or result.benchmark, result.metric, result.value),
            *(result.n, result.low, result.high),
        )
        for result in results
        if result.is_main
    ]
    add_evaluations(card, rows)
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.save(Path(folder) / "README.md")
