"""Features cached on disk under a fingerprint of model, data and transform.

They are memory-mapped numpy files and not a ``datasets.Dataset`` by ``map``: random batches of 2,000 rows of width 384
take 1 ms instead of 40 ms or more, and of dense maps 4 to 20 ms instead of 57 ms or more.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from singer_hf.evaluation.features.feature_loaders import (
    ArrayFeatureLoader,
    FeatureLoader,
    ModelFeatureLoader,
    in_order,
)
from singer_hf.tuner.layer import find_singer_layers

logger = logging.getLogger(__name__)

_GIB = 2**30
_LABELS = "labels"
_META = "meta.json"


class CacheBudgetError(ValueError):
    """Error: the features exceed the budget or the free disk space."""


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's class, config, parameters and buffers, and of how its SiNGER adapters are used."""
    digest = hashlib.sha256(type(model).__name__.encode())
    if hasattr(getattr(model, "config", None), "to_json_string"):
        digest.update(model.config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    for index, layer in sorted(find_singer_layers(model).items()):
        used = [] if layer.disable_adapters or layer.passthrough else layer.active_adapters
        digest.update(f"{index} {[(name, layer.num_prefix_tokens.get(name)) for name in used]}".encode())
    return digest.hexdigest()


def cache_fingerprint(model: nn.Module, data: str, transform: object, features_fn: object) -> dict[str, str]:
    """Describes what cached features depend on, each part as text.

    Args:
        model: The frozen model.
        data: Fingerprint of the rows, such as ``_fingerprint`` of a ``datasets.Dataset``, with split and subset.
        transform: The image transform; its ``repr`` must describe it completely.
        features_fn: The features function, likewise.

    Raises:
        ValueError: If a ``repr`` holds a memory address, which changes in every run.
    """
    parts = {
        "model": model_fingerprint(model),
        "data": data,
        "transform": repr(transform),
        "features": repr(features_fn),
    }
    for name, text in parts.items():
        if " at 0x" in text:
            raise ValueError(f"the `repr` of `{name}` must describe what it does, got {text!r}; give it a `__repr__`")
    return parts


def cache_features(
    loader: ModelFeatureLoader,
    directory: str | os.PathLike,
    fingerprint: dict[str, str],
    *,
    budget_gib: float = 16.0,
    batch_size: int = 64,
    progress: bool = True,
) -> ArrayFeatureLoader:
    """Loads the features of every row from disk, after computing and storing them if they are not there.

    Concurrent runs may share ``directory``: each writes to a name of its own, and the first to finish wins. Features
    of another model, data or transform have another name and are never used.

    Args:
        loader: Rows without random crops, as these would always be the same.
        directory: Folder of caches, with a sub-folder for each.
        fingerprint: Description of what the features depend on; see :func:`cache_fingerprint`.
        budget_gib: Largest size of this cache in GiB.
        batch_size: Images per forward pass.
        progress: Whether to show a progress bar.

    Raises:
        CacheBudgetError: If the features need more than ``budget_gib`` or than the disk has free.
    """
    folder = Path(directory) / _digest(fingerprint)[:24]
    if not folder.exists():
        _write(loader, folder, fingerprint, budget_gib, batch_size, progress)
    return open_cache(folder, fingerprint)


def cache_if_it_fits(
    loader: ModelFeatureLoader, directory: str | os.PathLike, fingerprint: dict[str, str], **options: object
) -> FeatureLoader:
    """Returns :func:`cache_features`, or, with a logged warning, ``loader`` itself if the features do not fit.

    Args:
        loader: Rows without random crops.
        directory: Folder of caches.
        fingerprint: Description of what the features depend on.
        **options: Further arguments of :func:`cache_features`.
    """
    try:
        return cache_features(loader, directory, fingerprint, **options)
    except CacheBudgetError as error:
        logger.warning("%s. They are computed anew in every pass.", error)
        return loader


def open_cache(folder: str | os.PathLike, fingerprint: dict[str, str]) -> ArrayFeatureLoader:
    """Opens a finished cache.

    Args:
        folder: Its folder.
        fingerprint: Description of what the features must depend on.

    Raises:
        FileNotFoundError: If ``folder`` holds no finished cache.
        ValueError: If it was made from another model, data, transform or features function.
    """
    folder = Path(folder)
    if not (folder / _META).is_file():
        raise FileNotFoundError(f"`folder` must hold cached features, got {str(folder)!r} without {_META}")
    meta = json.loads((folder / _META).read_text())
    if other := [name for name in fingerprint if meta["fingerprint"].get(name) != fingerprint[name]]:
        raise ValueError(
            f"`folder` must hold features of this model and data, got {str(folder)!r} made from another "
            f"{' and '.join(other)}; delete it or use another folder"
        )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in [*meta["features"], _LABELS]}
    labels = arrays.pop(_LABELS)
    return ArrayFeatureLoader(arrays, labels)


def _write(
    loader: ModelFeatureLoader, folder: Path, fingerprint: dict, budget_gib: float, batch_size: int, progress: bool
) -> None:
    batches = in_order(len(loader), batch_size)
    shapes = _row_shapes(*next(loader.iterate(batches[:1])), num_rows=len(loader))
    size = _check_size(shapes, folder.parent, budget_gib)
    logger.info("Caching %.3g GiB of features in %s", size, folder.parent)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        _fill(loader, partial, shapes, batches, "caching features" if progress else None)
        meta = {"fingerprint": fingerprint, "features": [name for name in shapes if name != _LABELS]}
        (partial / _META).write_text(json.dumps(meta, indent=2))
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _row_shapes(features: dict[str, Tensor], labels: Tensor, num_rows: int) -> dict[str, tuple[tuple, np.dtype]]:
    tensors = {**{name: tensor.float() for name, tensor in features.items()}, _LABELS: labels}
    return {name: ((num_rows, *tensor.shape[1:]), tensor[:0].cpu().numpy().dtype) for name, tensor in tensors.items()}


def _check_size(shapes: dict, directory: Path, budget_gib: float) -> float:
    size = sum(np.prod(shape, dtype=np.int64) * dtype.itemsize for shape, dtype in shapes.values()) / _GIB
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free / _GIB
    if size > budget_gib:
        raise CacheBudgetError(f"the features need {size:.3g} GiB, more than `budget_gib`={budget_gib:g}; raise it")
    if size > free:  # a full disk would kill the process, as the files are written by memory map
        raise CacheBudgetError(f"the features need {size:.3g} GiB, but {str(directory)!r} has {free:.3g} GiB free")
    return size


def _fill(loader: ModelFeatureLoader, folder: Path, shapes: dict, batches: list[range], title: str | None) -> None:
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (shape, dtype) in shapes.items()
    }
    bar = tqdm(loader.iterate(batches), total=len(batches), desc=title, disable=title is None)
    for rows, (features, labels) in zip(batches, bar, strict=True):
        for name, tensor in {**features, _LABELS: labels}.items():
            arrays[name][rows.start : rows.stop] = tensor.cpu().numpy()
    for array in arrays.values():
        array.flush()


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        # Another run stored the same features first.
        if not (folder / _META).is_file():
            raise


def _digest(fingerprint: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
