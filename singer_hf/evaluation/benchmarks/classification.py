"""Classification on the data of a benchmark, by linear heads and by nearest neighbours."""

from pathlib import Path

import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from singer_hf.data.image_dataset import transform_images
from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.benchmarks.benchmark_data import BenchmarkData, data_fingerprint
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel, cached_loader
from singer_hf.evaluation.benchmarks.image_crops import ImageCrop, crop_for
from singer_hf.evaluation.benchmarks.run_settings import RunSettings, digest
from singer_hf.evaluation.bootstrap import ClassificationOutcomes, CountedOutcomes, knn_outcomes
from singer_hf.evaluation.counts import top_classes
from singer_hf.evaluation.features.feature_loaders import FeatureLoader, ModelFeatureLoader, in_order
from singer_hf.evaluation.heads.fit import fit_heads
from singer_hf.evaluation.heads.fit_settings import sweep
from singer_hf.evaluation.heads.knn import knn_predict
from singer_hf.evaluation.heads.linear_heads import LinearHead
from singer_hf.evaluation.heads.tasks import ClassificationTask
from singer_hf.evaluation.label_checks import check_classes, check_same_classes

_TEST_BATCH = 256


def measure_linear(
    evaluated: EvaluatedModel,
    benchmark: Benchmark,
    data: BenchmarkData,
    settings: RunSettings,
    head: tuple[str, LinearHead] | None = None,
) -> tuple[ClassificationOutcomes, str, list[str]]:
    """Trains linear heads on the training split, unless a head is given, and classifies the test split.

    Args:
        evaluated: The model.
        benchmark: The benchmark.
        data: Its data.
        settings: Settings of the run.
        head: Name and head to use instead of training.

    Returns:
        Outcomes, name of the head, and notes.

    Raises:
        ValueError: If labels are out of range or nothing can be learned from them.
    """
    _, _, notes = evaluated.linear_features(settings.protocol)
    name, trained = fit_linear(evaluated, benchmark, data, settings) if head is None else head
    loader = _loader(evaluated, data.test, _center(evaluated, settings), settings)
    labels = torch.as_tensor(data.test["label"][:])
    check_classes(labels, data.num_classes, "labels")
    known = None
    if head is not None and benchmark.known_classes and not settings.protocol.all_classes:
        known = torch.tensor(benchmark.known_classes)
        notes.append(f"the reused head predicts among {len(known)} classes")
    top5, confidences = _classify(trained, loader, known, evaluated.device)
    counts = None
    if benchmark.long_tail:
        counts = torch.bincount(torch.as_tensor(data.train["label"][:]), minlength=data.num_classes)
    return ClassificationOutcomes(labels, top5, confidences, data.num_classes, counts), name, notes


def measure_knn(
    evaluated: EvaluatedModel, benchmark: Benchmark, data: BenchmarkData, settings: RunSettings
) -> tuple[CountedOutcomes, str, list[str]]:
    """Classifies the test split by nearest training images, compared by the first input of the protocol's heads.

    Args:
        evaluated: The model.
        benchmark: The benchmark.
        data: Its data.
        settings: Settings of the run.

    Returns:
        Outcomes, a description of the vote, and notes.

    Raises:
        ValueError: If there are no training images or the labels do not fit.
    """
    if data.train is None:
        raise ValueError(f"`task` must not be knn for {benchmark.name!r}, which has no training images")
    protocol = settings.protocol
    _, choices, notes = evaluated.linear_features(protocol)
    tokens, center = choices[0][0], _center(evaluated, settings)
    train, train_labels = _last_block(_loader(evaluated, data.train, center, settings), tokens)
    test, labels = _last_block(_loader(evaluated, data.test, center, settings), tokens)
    check_same_classes(train_labels, labels)
    k = min(protocol.knn_neighbours, len(train))
    scores = knn_predict(
        train, train_labels, test, k=k, temperature=protocol.knn_temperature, num_classes=data.num_classes
    )
    return knn_outcomes(scores, labels), f"{tokens}, k={k}, T={protocol.knn_temperature:g}", notes


def fit_linear(
    evaluated: EvaluatedModel, benchmark: Benchmark, data: BenchmarkData, settings: RunSettings
) -> tuple[str, LinearHead]:
    """Trains the protocol's linear heads and chooses the best one on a part of the training split.

    Args:
        evaluated: The model.
        benchmark: The benchmark.
        data: Its data.
        settings: Settings of the run.

    Returns:
        Name of the head, and the head.
    """
    _, choices, _ = evaluated.linear_features(settings.protocol)
    center = _center(evaluated, settings)
    loader = validation = _loader(evaluated, data.train, center, settings)
    if settings.augment:
        crop = crop_for(evaluated.spec, "random_resized_crop", center.size, center.resize)
        loader = _model_loader(evaluated, data.train, crop, settings)
    example = next(iter(loader.iterate([[0]])))[0]
    candidates = {}
    for tokens, blocks in choices:
        prefix = f"{tokens}, last {blocks}, " if len(choices) > 1 else f"{tokens}, "

        def make(tokens: str = tokens, blocks: int = blocks) -> LinearHead:
            return LinearHead(example, data.num_classes, tokens, blocks, seed=settings.seed)

        candidates.update(sweep(make, settings.rates(dense=False), prefix))
    result = fit_heads(
        candidates,
        ClassificationTask(data.num_classes),
        loader,
        settings.fit_settings(dense=False),
        validation_loader=validation,
        state_path=settings.state_file(evaluated.fingerprint, benchmark.name, data.fingerprint, center),
        device=evaluated.device,
        progress=settings.progress,
    )
    return result.name, result.head


def head_file(
    evaluated: EvaluatedModel, benchmark_name: str, settings: RunSettings, max_train_samples: int | None
) -> Path:
    """Returns the file of a trained head for other benchmarks.

    Args:
        evaluated: The model.
        benchmark_name: Benchmark on which the head is trained.
        settings: Settings of the run: protocol, its changes, and seed.
        max_train_samples: Largest number of training images.
    """
    parts = (evaluated.fingerprint, settings.protocol, settings.changes(), settings.seed, max_train_samples)
    return settings.work_dir / "heads" / f"{benchmark_name}-{digest(*parts)}.safetensors"


def save_head(file: Path, name: str, head: LinearHead) -> None:
    """Saves a linear head with its input for other benchmarks.

    Args:
        file: The file.
        name: Name of the head.
        head: The head.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = {"name": name, "tokens": head.tokens, "num_blocks": str(head.num_blocks)}
    save_file({key: value.cpu().contiguous() for key, value in head.state_dict().items()}, file, metadata=meta)


def load_head(file: Path) -> tuple[str, LinearHead]:
    """Loads name and head from a file of :func:`save_head`."""
    with safe_open(file, framework="pt") as stored:
        meta = stored.metadata()
        weights = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  (no dict)
    num_classes, width = weights["linear.weight"].shape
    head = _empty_head(meta["tokens"], int(meta["num_blocks"]), width, num_classes)
    head.load_state_dict(weights)
    return meta["name"], head.eval()


def _empty_head(tokens: str, num_blocks: int, width: int, num_classes: int) -> LinearHead:
    per_block = width // (num_blocks + 1 if tokens == "cls+mean" else num_blocks)
    example = torch.zeros(1, num_blocks, per_block)
    return LinearHead({"cls": example, "mean": example}, num_classes, tokens, num_blocks)


def _center(evaluated: EvaluatedModel, settings: RunSettings) -> ImageCrop:
    size = settings.size(evaluated.spec)
    return crop_for(evaluated.spec, "center", size, settings.resize(size))


def _model_loader(
    evaluated: EvaluatedModel, dataset: Dataset, crop: ImageCrop, settings: RunSettings
) -> ModelFeatureLoader:
    features_fn, _, _ = evaluated.linear_features(settings.protocol)
    rows = transform_images(dataset, crop, seed=settings.seed, normalize=False)
    return ModelFeatureLoader(evaluated.model, rows, features_fn, num_workers=settings.num_workers)


def _loader(evaluated: EvaluatedModel, dataset: Dataset, crop: ImageCrop, settings: RunSettings) -> FeatureLoader:
    loader = _model_loader(evaluated, dataset, crop, settings)
    data = f"{dataset._fingerprint} {data_fingerprint(dataset)}"
    return cached_loader(evaluated, loader, data, crop, settings)


@torch.no_grad()
def _classify(
    head: LinearHead, loader: FeatureLoader, known: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Best classes (N, 5) and confidences (N,), among the classes ``known`` (K,) if they are given."""
    top5, confidences = [], []
    head = head.to(device).eval()
    for features, _ in loader.iterate(in_order(len(loader), _TEST_BATCH)):
        logits = head({name: tensor.to(device) for name, tensor in features.items()}).float().cpu()
        if known is not None:
            others = torch.ones(logits.shape[1], dtype=torch.bool)
            others[known] = False
            logits[:, others] = -torch.inf
        top, confidence = top_classes(logits)
        top5.append(top)
        confidences.append(confidence)
    return torch.cat(top5), torch.cat(confidences)


def _last_block(loader: FeatureLoader, tokens: str) -> tuple[Tensor, Tensor]:
    """Features (N, D) of the last block and labels (N,)."""
    features, labels = [], []
    for batch, batch_labels in loader.iterate(in_order(len(loader), _TEST_BATCH)):
        features.append(batch[tokens][:, -1].float().cpu())
        labels.append(batch_labels.cpu())
    return torch.cat(features), torch.cat(labels).long()
