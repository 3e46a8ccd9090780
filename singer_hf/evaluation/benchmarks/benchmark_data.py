"""Loads the two splits of a benchmark with one numbering of their classes and a fingerprint."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Value

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_split
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.evaluation.benchmarks.benchmark import DRAWN, Benchmark
from singer_hf.evaluation.benchmarks.dense_data import select_dense_columns
from singer_hf.evaluation.benchmarks.imagenet_classes import imagenet_index

_DRAWN_TRAIN, _DRAWN_TEST, _DRAWN_SIZE = 2000, 1000, 64
_SCENE_SERIES = 1000  # no series on which the demo's teacher or students are trained
_HASHED_ROWS = 64


@dataclass(frozen=True)
class BenchmarkData:
    """The two splits of a benchmark.

    Attributes:
        train: Columns "image" and "label" (class index), or "image" and "target" (mask or depth map); None for a
            benchmark that reuses another one's head.
        test: Likewise.
        num_classes: Number of classes; 0 for depth.
        class_names: Their names; "0", "1", ... if the data has none.
        fingerprint: Hash of the rows, the same on every machine.
    """

    train: Dataset | None
    test: Dataset
    num_classes: int
    class_names: tuple[str, ...]
    fingerprint: str


def load_benchmark(
    benchmark: Benchmark, *, max_train_samples: int | None = None, max_test_samples: int | None = None, seed: int = 0
) -> BenchmarkData:
    """Loads the data of a benchmark.

    Args:
        benchmark: The benchmark, with the names and columns to use.
        max_train_samples: Largest number of training images; ``seed`` draws them. None takes all.
        max_test_samples: Largest number of test images, likewise.
        seed: Seed of the subsets and of drawn scenes.

    Raises:
        FileNotFoundError: If the data cannot be reached; the message names what was tried.
        ValueError: If columns, classes or splits do not fit.
    """
    train = None
    if benchmark.train_split:
        train = _load(benchmark, benchmark.train_name, benchmark.train_split, max_train_samples, seed, is_train=True)
    name = benchmark.test_name or benchmark.train_name
    test = _load(benchmark, name, benchmark.test_split, max_test_samples, seed, is_train=False)
    if benchmark.task in ("segmentation", "depth"):
        return _dense(benchmark, train, test)
    return _classified(benchmark, train, test)


def with_folder(benchmark: Benchmark, dataset_name: str) -> Benchmark:
    """Returns the benchmark on another copy of its data, with columns that are searched for.

    Args:
        benchmark: The benchmark.
        dataset_name: Local folder or Hub id with both splits.
    """
    return replace(
        benchmark,
        train_name=dataset_name,
        test_name="",
        config_name=None,
        image_column=None,
        target_column=None,
    )


def data_fingerprint(dataset: Dataset) -> str:
    """Returns a hash of the number of rows, all class indices, and the stored bytes of up to 64 rows of the set.

    Unlike the fingerprint of `datasets` it does not depend on the path of the files.
    """
    digest = hashlib.sha256(f"{len(dataset)} {sorted(dataset.column_names)}".encode())
    if "label" in dataset.column_names:
        digest.update(np.asarray(dataset["label"][:], dtype=np.int64).tobytes())
    for index in np.unique(np.linspace(0, len(dataset) - 1, _HASHED_ROWS).round().astype(int)).tolist():
        row = dataset[index]
        for name in ("image", "target"):
            if name in row:
                digest.update(_stored_bytes(row[name]))
    return digest.hexdigest()[:16]


def _stored_bytes(stored: dict) -> bytes:
    return stored["bytes"] if stored.get("bytes") else Path(stored["path"]).read_bytes()


def _load(
    benchmark: Benchmark, name: str, split: str, max_samples: int | None, seed: int, *, is_train: bool
) -> Dataset:
    if name == DRAWN:
        number = max_samples or (_DRAWN_TRAIN if is_train else _DRAWN_TEST)
        return scene_dataset(number, seed=_SCENE_SERIES + 2 * seed + (not is_train), size=_DRAWN_SIZE)
    if not name:
        raise _unreachable(benchmark, "", split, "no public copy of it is known")
    try:
        dataset = load_split(name, split, benchmark.config_name, False, None)
    except (FileNotFoundError, ConnectionError) as error:
        raise _unreachable(benchmark, name, split, str(error).rstrip(".")) from error
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:max_samples]))


def _unreachable(benchmark: Benchmark, name: str, split: str, reason: str) -> FileNotFoundError:
    tried = f"tried {name!r}, split {split!r}" if name else "nothing was tried"
    splits = " and ".join(repr(part) for part in (benchmark.train_split, benchmark.test_split) if part)
    return FileNotFoundError(
        f"the data of the benchmark {benchmark.name!r} cannot be reached ({tried}): {reason}. Give a copy with "
        f"`--dataset_name FOLDER`: an imagefolder, or parquet or arrow files, with the splits {splits}"
    )


def _dense(benchmark: Benchmark, train: Dataset, test: Dataset) -> BenchmarkData:
    columns = {"image_column": benchmark.image_column, "target_column": benchmark.target_column}
    train, test = (select_dense_columns(part, benchmark.task, **columns) for part in (train, test))
    number = 0 if benchmark.task == "depth" else benchmark.num_classes
    if number is None:
        raise ValueError(f"`num_classes` must be the number of classes in the masks of {benchmark.name!r}, got None")
    names = benchmark.class_names or tuple(map(str, range(number)))
    return BenchmarkData(train, test, number, names, _both(train, test))


def _classified(benchmark: Benchmark, train: Dataset | None, test: Dataset) -> BenchmarkData:
    if benchmark.imagenet_classes:
        train, test = (part and _numbered_as_imagenet(part, benchmark) for part in (train, test))
        names = tuple(map(str, range(benchmark.num_classes)))
        return BenchmarkData(train, test, benchmark.num_classes, names, _both(train, test))
    train, names = _labelled(train, benchmark)
    test, test_names = _labelled(test, benchmark)
    if names is not None and test_names is not None:
        test = _renumber(test, _places(test_names, names))
    number = len(names) if names is not None else max(train["label"][:]) + 1
    if benchmark.num_classes not in (None, number):
        raise ValueError(
            f"`num_classes` of {benchmark.name!r} must be {benchmark.num_classes}, got {number} in the training "
            "split; is this another data set? `--task classification` takes any"
        )
    names = names or [str(i) for i in range(number)]
    return BenchmarkData(train, test, number, tuple(names), _both(train, test))


def _labelled(dataset: Dataset, benchmark: Benchmark) -> tuple[Dataset, list[str] | None]:
    """Selects columns "image" and "label", and class names if there are any; text labels are numbered in order."""
    column = benchmark.target_column
    if column in dataset.column_names and getattr(dataset.features[column], "dtype", "") in ("string", "large_string"):
        dataset = dataset.class_encode_column(column)
    dataset = select_image_and_label(dataset, image_column=benchmark.image_column, label_column=column)
    if "label" not in dataset.column_names:
        raise ValueError(f"`dataset_name` of {benchmark.name!r} must have labels, got only {dataset.column_names}")
    feature = dataset.features["label"]
    return dataset, list(feature.names) if isinstance(feature, ClassLabel) else None


def _numbered_as_imagenet(dataset: Dataset, benchmark: Benchmark) -> Dataset:
    dataset, names = _labelled(dataset, benchmark)
    if names is not None and _are_words(names) and len(names) == benchmark.num_classes:
        return _renumber(dataset, range(len(names)))  # named by words as on the Hub, in the order of the head
    return dataset if names is None else _renumber(dataset, imagenet_index(names))


def _are_words(names: Sequence[str]) -> bool:
    return not any(name.isdigit() or (len(name) == 9 and name[1:].isdigit()) for name in names)


def _places(names: list[str], known: list[str]) -> list[int]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"the classes of the test split must be those of the training split, got {unknown[0]!r}; check "
            "that both splits are of the same data set"
        )
    return [known.index(name) for name in names]


def _renumber(dataset: Dataset, places: Sequence[int]) -> Dataset:
    labels = np.asarray(places, dtype=np.int64)[np.asarray(dataset["label"][:], dtype=np.int64)]
    return dataset.remove_columns("label").add_column("label", labels.tolist(), feature=Value("int64"))


def _both(train: Dataset | None, test: Dataset) -> str:
    return "-".join(data_fingerprint(part) for part in (train, test) if part is not None)
