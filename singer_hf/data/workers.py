"""The number of processes that load images, where none is given."""

import multiprocessing
import os
from typing import Any

from singer_hf.data.image_dataset import ImageDataset

# For fewer the start of the processes takes longer than the loading.
_FEW_IMAGES = 500


def choose_num_workers(dataset: Any) -> int:
    """Number of processes that load a training set if none is given; it does not change the images.

    One for each core that this process may use, shared among the training processes of the machine. None for a stream,
    whose order depends on the number; for fewer than 500 images; for datasets that hold no encoded images; and where
    processes are not forked, as they would run a script without `if __name__ == "__main__"` again.

    Args:
        dataset: The dataset that the loader gets.
    """
    is_large = isinstance(dataset, ImageDataset) and len(dataset) >= _FEW_IMAGES
    if not is_large or start_method() != "fork":
        return 0
    return max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def start_method() -> str:
    """How Python starts processes: fork, forkserver or spawn."""
    # Asked in this way, it can still be set later.
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
