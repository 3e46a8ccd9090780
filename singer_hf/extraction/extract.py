"""The public function that extracts features: any model, any form of images."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import datasets
import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm

from singer_hf.data.batches.given_images import check_images, iterate_pixels
from singer_hf.data.datasets import load_image_dataset
from singer_hf.extraction.extractors import Extractor, make_extractor
from singer_hf.extraction.feature_dataset import FeatureDatasetWriter, feature_folder
from singer_hf.extraction.preprocessing import check_image_size, make_transform
from singer_hf.tuner.loading import load_adapter
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.loading import load_model

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def extract_features(
    model: nn.Module | str | os.PathLike,
    images: Any,
    *,
    layers: int | Sequence[int] | None = None,
    output: Literal["map", "tokens"] = "map",
    norm: bool = False,
    processor: Any = None,
    image_size: int | tuple[int, int] | None = None,
    adapter_name_or_path: str | os.PathLike | None = None,
    split: str = "train",
    image_column: str | None = None,
    column_prefix: str | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Tensor | dict[int, Tensor] | Dataset:
    """Extracts feature maps or tokens of a teacher, of a teacher with SiNGER adapters, or of a student.

    With active SiNGER adapters the features are the refined ones: a block with an adapter gives its refined tokens,
    and the later blocks get them. Within ``peft_model.disable_adapter()`` they are those of the plain teacher. The
    model runs in eval mode without gradients; afterwards it has its own mode, device and adapters as before.

    Images are converted to RGB and turned by their EXIF orientation. An unreadable image of a dataset is left out
    with its row, as in the audit, and a warning counts them and names the first ones; an unreadable PIL image raises
    an error, as the result could not be matched to the images. The result does not depend on ``batch_size`` and
    ``num_workers`` beyond rounding.

    Args:
        model: A module that :func:`singer_hf.vit.structure.view_vit` accepts, with or without adapters, or a local
            folder or Hub id of one. A model with feature maps as ``hidden_states``, such as a CNN of transformers,
            works as well; its feature maps count as blocks.
        images: One of these:

            - a PIL image or an iterable of them;
            - normalised pixel values (B, 3, H, W) or (3, H, W), or a dict with ``"pixel_values"``, such as the image
              processor returns, or an iterable of these, such as a ``DataLoader``;
            - a ``datasets.Dataset`` with a column of images, or the folder or Hub id of one.
        layers: 0-based block indices, negative ones from the end. None takes the last block.
        output: ``"map"``: patch tokens on their grid, (B, D, rows, columns). ``"tokens"``: all tokens with the
            prefix tokens first, (B, P+N, D).
        norm: Whether the model's final norm is applied to the tokens of every chosen block. False gives the tokens
            before it, as everywhere in this package.
        processor: Image processor, or the folder or Hub id where it is saved; None takes the one saved with the
            model. Not used for pixel values.
        image_size: Edge, or height and width, of the images in pixels, to which the whole image is resized: a
            multiple of the patch size, of a model that interpolates its position embeddings. None takes size and
            crop of the image processor. Not for pixel values.
        adapter_name_or_path: Folder or Hub id of a SiNGER adapter for a ``model`` that is a folder or Hub id.
        split: Split of a folder or Hub id.
        image_column: Column with the images of a dataset; None detects it.
        column_prefix: The new columns of a dataset are ``<column_prefix>_<block>``; None takes ``output``.
        batch_size: Largest number of images per forward pass; larger batches in ``images`` are split.
        num_workers: Processes that load the images of a dataset.
        device: Torch device of the forward passes. None: where the module is; for a folder or Hub id a GPU if there
            is one.
        dtype: ``"float32"`` or ``"float16"``: type of the result. The model computes in its own type.
        cache_dir: Folder of the file of a dataset's features; None takes one in the cache of ``datasets``.
        progress: Whether to show a progress bar.

    Returns:
        For images, pixel values and iterables: tensors on the CPU, one image being a batch of 1. If ``layers`` is
        None or an integer, this is the tensor itself, otherwise a dict of 0-based block index -> tensor.

        For a dataset, folder or Hub id: a dataset of the same columns and one column of fixed shape for each block,
        such as ``map_11``, without the images' batch dimension. It is computed anew by every call, memory-mapped
        from a file of its own in ``cache_dir``, which may be deleted with the dataset, and has no format;
        ``with_format("torch")`` gives tensors.

    Raises:
        ValueError: If an argument is out of its range, an image or the model is not supported, there is no image
            processor, or ``float16`` cannot hold the features.
        FileNotFoundError: If there is no such model or dataset.
    """
    stored = _check_options(batch_size, num_workers, dtype)
    module, device = _load(model, adapter_name_or_path, device)
    extractor = make_extractor(module, layers, output, norm)
    check_image_size(module, image_size)
    transform = partial(make_transform, module, processor, image_size)
    compute = partial(_compute, extractor, stored)
    if isinstance(images, str | os.PathLike):
        images = load_image_dataset(images, split=split, image_column=image_column)
        images, image_column = images.cast_column("image", datasets.Image()), "image"
    with _on_device(module, device), evaluation_mode(module):
        if isinstance(images, Dataset):
            prefix, folder = column_prefix or output, feature_folder(cache_dir)
            place = next(module.parameters()).device
            write = FeatureDatasetWriter(compute, prefix, folder, batch_size, num_workers, place, progress)
            return write(images, transform(), image_column)
        check_images(images)
        batches = iterate_pixels(images, batch_size, transform, image_size)
        found = _join(map(compute, _with_bar(batches, images, progress)))
    return found if isinstance(layers, Iterable) else next(iter(found.values()))


def _check_options(batch_size: int, num_workers: int, dtype: str | torch.dtype) -> torch.dtype:
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value!r}")
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"`dtype` must be one of {tuple(_DTYPES)}, got {dtype!r}")
    return _DTYPES[name]


def _load(
    model: nn.Module | str | os.PathLike, adapter: str | os.PathLike | None, device: str | torch.device | None
) -> tuple[nn.Module, torch.device | None]:
    """The model with its adapter, and the device to run it on, None for where it is."""
    given = isinstance(model, nn.Module)
    if given and adapter is not None:
        raise ValueError(
            "`adapter_name_or_path` must be None for a module, which would be changed, got "
            f"{os.fspath(adapter)!r}; load it yourself with `PeftModel.from_pretrained(model, ...)`"
        )
    try:
        default = None if given else "cuda" if torch.cuda.is_available() else "cpu"
        place = torch.device(device or default) if device or default else None
    except RuntimeError as error:
        raise ValueError(f"`device` must be a device of torch, got {device!r}: {error}") from error
    loaded = load_model(model if given else os.fspath(model), "model")
    return (loaded if adapter is None else load_adapter(loaded, adapter)), place


@contextmanager
def _on_device(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    before = next(model.parameters()).device
    if device is None:
        yield
        return
    try:
        model.to(device)
        yield
    finally:
        model.to(before)


def _compute(extractor: Extractor, dtype: torch.dtype, pixel_values: Tensor) -> dict[int, Tensor]:
    return {index: _store(features, dtype) for index, features in extractor(pixel_values).items()}


def _store(features: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    if dtype == torch.float16 and features.isfinite().all() and (peak := features.abs().max()) > largest:
        raise ValueError(
            f"`dtype` must be 'float32' for features as large as {peak:.3g}, got 'float16', which ends at {largest:g}"
        )
    return features.to(dtype).cpu()


def _with_bar(batches: Iterator[Tensor], images: Any, progress: bool) -> Iterator[Tensor]:
    total = len(images) if isinstance(images, Tensor) else None
    with tqdm(desc="features", total=total, unit="image", disable=not progress) as bar:
        for pixel_values in batches:
            yield pixel_values
            bar.update(len(pixel_values))


def _join(batches: Iterator[dict[int, Tensor]]) -> dict[int, Tensor]:
    parts: dict[int, list[Tensor]] = {}
    for features in batches:
        for index, tensor in features.items():
            parts.setdefault(index, []).append(tensor)
            _check_same_size(parts[index])
    if not parts:
        raise ValueError("`images` must hold at least one image, got none")
    return {index: torch.cat(tensors) for index, tensors in parts.items()}


def _check_same_size(tensors: Sequence[Tensor]) -> None:
    first, last = (tuple(tensor.shape[1:]) for tensor in (tensors[0], tensors[-1]))
    if first != last:
        raise ValueError(
            f"`images` must all have one size, got features of shapes {first} and {last}; call once for each size"
        )
