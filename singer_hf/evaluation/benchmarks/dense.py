"""Segmentation and depth heads on a benchmark's data."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from singer_hf.evaluation.benchmarks.benchmark_data import BenchmarkData, data_fingerprint
from singer_hf.evaluation.benchmarks.catalog import Benchmark
from singer_hf.evaluation.benchmarks.dense_data import IGNORED, DenseRows, DepthDecoder, MaskDecoder
from singer_hf.evaluation.benchmarks.image_crops import ImageCrop, crop_for
from singer_hf.evaluation.benchmarks.run_settings import EvaluatedModel, RunSettings, cached_loader
from singer_hf.evaluation.bootstrap import CountedOutcomes
from singer_hf.evaluation.features.feature_loaders import FeatureLoader, ModelFeatureLoader, in_order
from singer_hf.evaluation.features.sliding_window import head_predictor, sliding_window
from singer_hf.evaluation.heads.fit import fit_heads, sweep
from singer_hf.evaluation.heads.linear_heads import DepthHead, SegmentationHead
from singer_hf.evaluation.heads.tasks import DepthTask, SegmentationTask, upsample

_AUGMENTED_SCALE = 0.7  # SiNGER's mdistiller/dataset/ade20k.py: RandomResizedCrop(scale=(0.7, 1.0))
_TEST_BATCH = 16


@dataclass(frozen=True)
class Pictures:
    """Test images with truth and prediction, for a figure.

    Attributes:
        images: Images (3, h, w), values in [0, 1].
        truths: Masks or depth maps (H, W).
        predictions: Likewise, of the truths' sizes.
    """

    images: list[Tensor]
    truths: list[Tensor]
    predictions: list[Tensor]


@dataclass(frozen=True)
class _Views:
    """Views for training and test; ``stride`` is None where a test image is seen in one piece."""

    train: ImageCrop
    augmented: ImageCrop
    test: ImageCrop
    stride: tuple[int, int] | None = None


def measure_dense(
    evaluated: EvaluatedModel, benchmark: Benchmark, data: BenchmarkData, settings: RunSettings
) -> tuple[CountedOutcomes, str, list[str], Pictures]:
    """Trains segmentation or depth heads on the training split and predicts the test split.

    Returns:
        Outcomes, name of the head, notes, and pictures.
    """
    is_depth = benchmark.task == "depth"
    decode = (
        DepthDecoder(benchmark.depth_scale)
        if is_depth
        else MaskDecoder(benchmark.ignore_values, benchmark.label_offset)
    )
    task, views = _task(benchmark, data, settings), _views(evaluated, is_depth, settings)
    features_fn, notes = evaluated.dense_features(settings.protocol)

    def loader(dataset: object, view: ImageCrop) -> ModelFeatureLoader:
        rows = DenseRows(dataset, view, decode, settings.seed)
        return ModelFeatureLoader(evaluated.model, rows, features_fn, num_workers=settings.num_workers)

    train = validation = _cached(evaluated, loader(data.train, views.train), settings)
    if settings.augment:
        train = loader(data.train, views.augmented)
    name, head = _fit(evaluated, benchmark, data, settings, task, train, validation)
    test = loader(data.test, views.test)
    if views.stride is None:
        predicted = _in_batches(evaluated, head, _cached(evaluated, test, settings))
    else:
        predicted = _by_window(evaluated, head, test, views, settings)
    # Spread over the set: neighbouring rows are often neighbouring frames.
    shown = torch.linspace(0, len(data.test) - 1, settings.num_pictures).round().long().unique().tolist()
    counts, truths, predictions = _count(predicted, task, shown, len(data.test), settings.progress)
    images = [views.test.restore(test.dataset[i]["pixel_values"]) for i in shown]
    return CountedOutcomes(counts, task.divide), name, notes, Pictures(images, truths, predictions)


def _task(benchmark: Benchmark, data: BenchmarkData, settings: RunSettings) -> SegmentationTask | DepthTask:
    if benchmark.task == "segmentation":
        return SegmentationTask(data.num_classes, IGNORED)
    temperature = settings.depth_temperature or settings.protocol.depth_temperature
    return DepthTask(settings.protocol.max_depth, temperature)


def _views(evaluated: EvaluatedModel, is_depth: bool, settings: RunSettings) -> _Views:
    """Depth: the centre square. Segmentation: the whole image in one window, or crops and a sliding window."""
    protocol, size, spec = settings.protocol, settings.size(evaluated.spec), evaluated.spec
    shorter = settings.resize_size or max(size)
    augmented = crop_for("random_resized_crop", spec, size, shorter, _AUGMENTED_SCALE)
    if is_depth:
        center = crop_for("center", spec, size, shorter)
        return _Views(center, augmented, center)
    if protocol.stride == protocol.window:
        squash = crop_for("squash", spec, size, shorter)
        return _Views(squash, augmented, squash)
    # Without `augment` the crop of each image is drawn once: features of crops can be kept then.
    crop = crop_for("random_crop", spec, size, shorter)
    stride = tuple(
        max(1, round(length * step / window))
        for length, step, window in zip(size, protocol.stride, protocol.window, strict=True)
    )
    return _Views(crop, crop, crop_for("whole", spec, size, shorter), stride)


def _cached(evaluated: EvaluatedModel, loader: ModelFeatureLoader, settings: RunSettings) -> FeatureLoader:
    rows: DenseRows = loader.dataset
    data = f"{rows.dataset._fingerprint} {data_fingerprint(rows.dataset)} {rows.decode} {rows.seed}"
    return cached_loader(evaluated, loader, data, rows.view, settings)


def _fit(
    evaluated: EvaluatedModel,
    benchmark: Benchmark,
    data: BenchmarkData,
    settings: RunSettings,
    task: SegmentationTask | DepthTask,
    train: FeatureLoader,
    validation: FeatureLoader,
) -> tuple[str, nn.Module]:
    example, protocol = next(iter(train.iterate([[0]])))[0], settings.protocol

    def make() -> nn.Module:
        if benchmark.task == "depth":
            return DepthHead(example, protocol.depth_bins, seed=settings.seed)
        return SegmentationHead(example, data.num_classes, protocol.batch_norm, seed=settings.seed)

    result = fit_heads(
        sweep(make, settings.rates(dense=True)),
        task,
        train,
        settings.fit_settings(dense=True),
        validation_loader=validation,
        state_path=settings.state_file(evaluated.fingerprint, benchmark, data.fingerprint, evaluated.spec),
        device=evaluated.device,
        progress=settings.progress,
    )
    return result.name, result.head


@torch.no_grad()
def _in_batches(evaluated: EvaluatedModel, head: nn.Module, loader: FeatureLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (1, C, h, w), labels (1, H, W)) of each image."""
    for features, labels in loader.iterate(in_order(len(loader), _TEST_BATCH)):
        logits = head({name: tensor.to(evaluated.device) for name, tensor in features.items()})
        yield from zip(logits[:, None], labels.to(evaluated.device)[:, None], strict=True)


def _by_window(
    evaluated: EvaluatedModel, head: nn.Module, loader: ModelFeatureLoader, views: _Views, settings: RunSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`_in_batches`, from windows over images of any size, with masks as they are stored."""
    predict = head_predictor(evaluated.model, loader.features_fn, head)
    for row in DataLoader(loader.dataset, batch_size=None, num_workers=settings.num_workers):
        pixel_values = row["pixel_values"][None].to(evaluated.device)
        yield (
            sliding_window(predict, pixel_values, views.test.size, views.stride),
            row["labels"][None].to(evaluated.device),
        )


@torch.no_grad()
def _count(
    predicted: Iterator[tuple[Tensor, Tensor]],
    task: SegmentationTask | DepthTask,
    shown: list[int],
    total: int,
    progress: bool,
) -> tuple[list[dict[str, Tensor]], list[Tensor], list[Tensor]]:
    """Counts of each image, and truths and predictions of the rows ``shown``."""
    counts, truths, predictions = [], [], []
    for row, (logits, labels) in enumerate(tqdm(predicted, total=total, desc="test", disable=not progress)):
        counts.append({key: value.cpu() for key, value in task.count(logits, labels).items()})
        if row in shown:
            full = upsample(logits, labels)
            prediction = task.predict(full) if isinstance(task, DepthTask) else full.argmax(dim=1)
            truths.append(labels[0].cpu())
            predictions.append(prediction[0].cpu())
    return counts, truths, predictions
