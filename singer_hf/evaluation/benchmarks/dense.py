"""Segmentation and depth on the data of a benchmark."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import BenchmarkData, data_fingerprint
from singer_hf.evaluation.benchmarks.dense_data import IGNORED, DenseRows, DepthDecoder, MaskDecoder
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel, cached_loader
from singer_hf.evaluation.benchmarks.image_crops import ImageCrop, crop_for
from singer_hf.evaluation.benchmarks.run_settings import RunSettings
from singer_hf.evaluation.bootstrap import CountedOutcomes
from singer_hf.evaluation.counts import Counts
from singer_hf.evaluation.features.feature_loaders import FeatureLoader, ModelFeatureLoader, in_order
from singer_hf.evaluation.features.sliding_window import head_predictor, sliding_window
from singer_hf.evaluation.heads.fit import fit_heads
from singer_hf.evaluation.heads.fit_settings import sweep
from singer_hf.evaluation.heads.linear_heads import DepthHead, SegmentationHead
from singer_hf.evaluation.heads.tasks import DepthTask, SegmentationTask

_AUGMENTED_SCALE = 0.7  # SiNGER's mdistiller/dataset/ade20k.py: RandomResizedCrop(scale=(0.7, 1.0))
_TEST_BATCH = 16


@dataclass(frozen=True)
class DenseExamples:
    """Test images with truth and prediction, for a figure.

    Attributes:
        images: Pictures (h, w, 3), values in [0, 1].
        truths: Masks or depth maps (H, W).
        predictions: Predicted masks or depth maps, of the same sizes.
    """

    images: list[Tensor]
    truths: list[Tensor]
    predictions: list[Tensor]


@dataclass(frozen=True)
class _Crops:
    """Crops for training and test; ``stride`` is None if a test image is one window."""

    train: ImageCrop
    augmented: ImageCrop
    test: ImageCrop
    stride: tuple[int, int] | None = None


def measure_dense(
    evaluated: EvaluatedModel, benchmark: Benchmark, data: BenchmarkData, settings: RunSettings
) -> tuple[CountedOutcomes, str, list[str], DenseExamples]:
    """Trains segmentation or depth heads on the training split and predicts the test split.

    Args:
        evaluated: The model.
        benchmark: The benchmark.
        data: Its data.
        settings: Settings of the run.

    Returns:
        Outcomes, name of the head, notes, and examples.
    """
    task, crops = _task(benchmark, data, settings), _crops(evaluated, benchmark, settings)
    features_fn, notes = evaluated.dense_features(settings.protocol)

    def loader(dataset: Dataset, crop: ImageCrop) -> ModelFeatureLoader:
        rows = DenseRows(dataset, crop, _decoder(benchmark), settings.seed)
        return ModelFeatureLoader(evaluated.model, rows, features_fn, num_workers=settings.num_workers)

    train = validation = _cached(evaluated, loader(data.train, crops.train), settings)
    if settings.augment:
        train = loader(data.train, crops.augmented)
    name, head = _fit(evaluated, benchmark, data, settings, task, train, validation)
    test = loader(data.test, crops.test)
    if crops.stride is None:
        predicted = _in_batches(evaluated, head, _cached(evaluated, test, settings))
    else:
        predicted = _by_window(evaluated, head, test, crops, settings)
    # Spread over the set, as neighbouring rows are often neighbouring frames.
    shown = torch.linspace(0, len(data.test) - 1, settings.num_pictures).round().long().unique().tolist()
    predicted = tqdm(predicted, total=len(data.test), desc="test", disable=not settings.progress)
    counts, truths, predictions = _count(predicted, task, shown)
    images = [test.dataset[i]["pixels"].permute(1, 2, 0) / 255 for i in shown]
    outcomes = CountedOutcomes(counts, task.new_metric().from_counts)
    return outcomes, name, notes, DenseExamples(images, truths, predictions)


def _decoder(benchmark: Benchmark) -> DepthDecoder | MaskDecoder:
    if benchmark.task == "depth":
        return DepthDecoder(benchmark.depth_scale)
    return MaskDecoder(benchmark.ignore_values, benchmark.label_offset)


def _task(benchmark: Benchmark, data: BenchmarkData, settings: RunSettings) -> SegmentationTask | DepthTask:
    if benchmark.task == "segmentation":
        return SegmentationTask(data.num_classes, IGNORED)
    temperature = settings.depth_temperature or settings.protocol.depth_temperature
    return DepthTask(settings.protocol.max_depth, temperature)


def _crops(evaluated: EvaluatedModel, benchmark: Benchmark, settings: RunSettings) -> _Crops:
    """Depth: the centre square. Segmentation: the whole image in one window, or crops and a sliding window."""
    protocol, size, spec = settings.protocol, settings.size(evaluated.spec), evaluated.spec
    shorter = settings.resize_size or max(size)
    augmented = crop_for(spec, "random_resized_crop", size, shorter, _AUGMENTED_SCALE)
    if benchmark.task == "depth":
        center = crop_for(spec, "center", size, shorter)
        return _Crops(center, augmented, center)
    if protocol.stride == protocol.window:
        squash = crop_for(spec, "squash", size, shorter)
        return _Crops(squash, augmented, squash)
    # Without `augment` the crop of each image is drawn once, so that its features can be cached.
    crop = crop_for(spec, "random_crop", size, shorter)
    stride = tuple(
        max(1, round(length * step / window))
        for length, step, window in zip(size, protocol.stride, protocol.window, strict=True)
    )
    return _Crops(crop, crop, crop_for(spec, "whole", size, shorter), stride)


def _cached(evaluated: EvaluatedModel, loader: ModelFeatureLoader, settings: RunSettings) -> FeatureLoader:
    rows: DenseRows = loader.dataset
    data = f"{rows.dataset._fingerprint} {data_fingerprint(rows.dataset)} {rows.decode} {rows.seed}"
    return cached_loader(evaluated, loader, data, rows.crop, settings)


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
    """Yields logits (1, C, h, w) and labels (1, H, W) of each image."""
    for features, labels in loader.iterate(in_order(len(loader), _TEST_BATCH)):
        logits = head({name: tensor.to(evaluated.device) for name, tensor in features.items()})
        yield from zip(logits[:, None], labels.to(evaluated.device)[:, None], strict=True)


def _by_window(
    evaluated: EvaluatedModel, head: nn.Module, loader: ModelFeatureLoader, crops: _Crops, settings: RunSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields logits and labels of each image as :func:`_in_batches`, from windows over images of any size."""
    predict = head_predictor(evaluated.model, loader.features_fn, head)
    for row in DataLoader(loader.dataset, batch_size=None, num_workers=settings.num_workers):
        pixel_values = loader.to_pixel_values(row["pixels"][None])
        logits = sliding_window(predict, pixel_values, crops.test.size, crops.stride)
        yield logits, row["labels"][None].to(evaluated.device)


@torch.no_grad()
def _count(
    predicted: Iterator[tuple[Tensor, Tensor]], task: SegmentationTask | DepthTask, shown: list[int]
) -> tuple[list[Counts], list[Tensor], list[Tensor]]:
    """Counts of each image, and truths and predictions (H, W) of the rows ``shown``."""
    metric, counts, truths, predictions = task.new_metric(), [], [], []
    for row, (logits, labels) in enumerate(predicted):
        prediction = task.predict(logits, labels)
        counts.append({key: value.cpu() for key, value in metric.count(prediction, labels).items()})
        if row in shown:
            truths.append(labels[0].cpu())
            predictions.append(prediction[0].cpu())
    return counts, truths, predictions
