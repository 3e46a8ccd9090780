"""The results of an evaluation as one object: a table in a notebook, files, a data frame."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from singer_hf.evaluation.metrics import greater_is_better
from singer_hf.evaluation.results.files import RESULTS_FILE, read_results, write_results
from singer_hf.evaluation.results.result import Result
from singer_hf.evaluation.results.tables import results_table

if TYPE_CHECKING:
    import pandas

_FIELDS = tuple(item.name for item in fields(Result))


@dataclass
class EvaluationResults:
    """All metrics of all models on all benchmarks.

    Attributes:
        results: One entry per metric, model and benchmark.
        missing: For each benchmark whose data could not be reached, what was tried.
        files: Name -> content of the metrics of each class and of the figures, such as ``figures/knn_size.png``.
    """

    results: list[Result]
    missing: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_folder(cls, results: Sequence[Result], folder: Path, missing: Sequence[str] = ()) -> "EvaluationResults":
        """Returns results with the files that their run has written.

        Args:
            results: The results.
            folder: The folder of the run.
            missing: See above.
        """
        paths = [*sorted(folder.glob("per_class_*.json")), *sorted(folder.glob("figures/*.png"))]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return cls(list(results), list(missing), files)

    @property
    def main(self) -> dict[str, dict[str, float]]:
        """Name of the model -> benchmark -> value of its main metric."""
        values: dict[str, dict[str, float]] = {}
        for result in filter(lambda item: item.is_main, self.results):
            values.setdefault(result.model, {})[result.benchmark] = result.value
        return values

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes results.json, results.md, per_class_*.json and figures/*.png; results that the folder holds stay.

        Args:
            folder: The folder; it is created if needed.

        Returns:
            Path of results.json.

        Raises:
            ValueError: If there are no results, or those that the folder holds cannot be read.
        """
        write_results(folder, self.results)
        for name, content in self.files.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return Path(folder, RESULTS_FILE)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "EvaluationResults":
        """Loads what :meth:`save` or the command has written.

        Args:
            folder: Folder with results.json.

        Raises:
            FileNotFoundError: If there is no results.json.
            ValueError: If it is damaged.
        """
        if not Path(folder, RESULTS_FILE).is_file():
            raise FileNotFoundError(f"`folder` must hold {RESULTS_FILE}, got {os.fspath(folder)!r}")
        return cls.of_folder(read_results(folder), Path(folder))

    def to_pandas(self) -> "pandas.DataFrame":
        """Returns a data frame with a row per metric; its columns are the fields of :class:`Result`."""
        import pandas

        return pandas.DataFrame([asdict(result) for result in self.results], columns=list(_FIELDS))

    def __str__(self) -> str:
        return results_table(self.results)

    def _repr_html_(self) -> str:
        header = ("model", "benchmark", "metric", "value", "95 % interval", "n", "head", "protocol")
        head = "".join(f"<th>{name}</th>" for name in header)
        rows = "".join(f"<tr>{_cells(result)}</tr>" for result in self.results)
        notes = "".join(f"<p>Not evaluated: {escape(text)}</p>" for text in self.missing)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


def _cells(result: Result) -> str:
    arrow = "↑" if greater_is_better(result.metric) else "↓"
    texts = (result.model, result.benchmark, f"{result.metric} {arrow}", f"{result.value:.4f}")
    texts += (f"{result.low:.4f} to {result.high:.4f}", str(result.n), result.head, result.protocol)
    cells = [escape(text) for text in texts]
    if result.is_main:
        cells[3] = f"<b>{cells[3]}</b>"
    return "".join(f"<td>{cell}</td>" for cell in cells)
