"""Images of a comparison, the same for all of its cells."""

from functools import lru_cache

import datasets

from singer_hf.comparison.study import Study
from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.evaluation.benchmarks.benchmark import DRAWN

_DRAWN_TRAIN, _DRAWN_TEST = 4_000, 1_000
# Other series than those of the demo's teacher and of the benchmarks.
_TRAIN_SERIES, _TEST_SERIES = 2, 3


def training_images(study: Study) -> datasets.Dataset:
    """Images to distil on."""
    return _images(study.dataset_name, study.train_split, study.max_train_samples)


def probe_images(study: Study) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Labelled images to fit probes on, and to measure on."""
    train = _images(study.dataset_name, study.train_split, study.max_probe_samples)
    return train, _images(study.dataset_name, study.test_split, study.max_test_samples)


@lru_cache(maxsize=8)
def _images(name: str, split: str, max_samples: int | None) -> datasets.Dataset:
    if name != DRAWN:
        return load_image_dataset(name, split=split, max_samples=max_samples, seed=0)
    series, number = (_TEST_SERIES, _DRAWN_TEST) if split == "test" else (_TRAIN_SERIES, _DRAWN_TRAIN)
    return select_image_and_label(scene_dataset(max_samples or number, seed=series))
