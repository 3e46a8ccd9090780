"""Which benchmarks can be run with the data on this machine, and copies of their data in one folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
from datasets.naming import camelcase_to_snakecase

from singer_hf.evaluation.benchmarks.benchmark import DRAWN, Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import with_folder
from singer_hf.evaluation.benchmarks.catalog import get_benchmark


def with_folders(benchmarks: Iterable[Benchmark], folder: str) -> list[Benchmark]:
    """Returns benchmarks of which those that have a folder of their name in ``folder`` take their data from there.

    Args:
        benchmarks: The benchmarks.
        folder: Local folder with the folders.

    Raises:
        ValueError: If none of them has one.
    """
    given = list(benchmarks)
    found = [with_folder(item, str(own)) if (own := Path(folder, item.name)).is_dir() else item for item in given]
    if found == given:
        raise ValueError(
            f"`dataset_name` for several benchmarks must be a folder with a folder {given[0].name!r} and so on, got "
            f"{folder!r}; for one copy of one data set name exactly one benchmark"
        )
    return found


def at_hand(
    benchmarks: Sequence[Benchmark], head_dataset_name: str | None = None
) -> tuple[list[Benchmark], list[str]]:
    """Separates the benchmarks whose data lies on this machine, so that nothing is downloaded.

    Args:
        benchmarks: The benchmarks.
        head_dataset_name: Copy of the data for a head that benchmarks reuse.

    Returns:
        Those that can be run; and for each of the others its name and the reason.
    """
    reasons = {item.name: _reason(item) or _reason_of_head(item, head_dataset_name) for item in benchmarks}
    skipped = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    return [item for item in benchmarks if not reasons[item.name]], skipped


def _reason(benchmark: Benchmark) -> str:
    names = dict.fromkeys(filter(None, (benchmark.train_name, benchmark.test_name)))
    if not names:
        return "no public copy of its data is known; `dataset_name` can name a folder"
    absent = [name for name in names if name != DRAWN and not Path(name).exists() and not _in_cache(name)]
    return f"{absent[0]!r} is not on this machine; name the benchmark to load it" if absent else ""


def _reason_of_head(benchmark: Benchmark, head_dataset_name: str | None) -> str:
    if not benchmark.head_from or head_dataset_name is not None:
        return ""
    reason = _reason(get_benchmark(benchmark.head_from))
    return f"it takes the head of {benchmark.head_from!r}, and {reason}" if reason else ""


def _in_cache(name: str) -> bool:
    """Whether `datasets` has prepared a data set of the Hub."""
    *namespace, own = name.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE, "___".join([*namespace, camelcase_to_snakecase(own)]))
    return any(".incomplete" not in str(file) for file in folder.rglob("dataset_info.json"))
