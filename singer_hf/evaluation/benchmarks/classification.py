"""Classification by linear heads and by nearest neighbours on a benchmark's data."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from singer_hf.data.image_dataset import transform_images
from singer_hf.evaluation.benchmarks.benchmark_data import BenchmarkData, data_fingerprint
from singer_hf.evaluation.benchmarks.catalog import Benchmark
from singer_hf.evaluation.benchmarks.image_crops import ImageCrop, crop_for
from singer_hf.evaluation.benchmarks.run_settings import EvaluatedModel, RunSettings, cached_loader, digest
from singer_hf.evaluation.bootstrap import ClassificationOutcomes, CountedOutcomes, knn_outcomes
from singer_hf.evaluation.features.feature_loaders import FeatureLoader, ModelFeatureLoader, in_order
from singer_hf.evaluation.heads.fit import fit_heads, sweep
from singer_hf.evaluation.heads.knn import check_same_classes, knn_predict
from singer_hf.evaluation.heads.linear_heads import LinearHead
from singer_hf.evaluation.heads.tasks import ClassificationTask
from singer_hf.evaluation.metrics import check_classes

_TEST_BATCH = 256


def measure_linear(
    evaluated: EvaluatedModel,
    benchmark: Benchmark,
    data: BenchmarkData,
    settings: RunSettings,
    head: tuple[str, LinearHead] | None = None,
) -> tuple[ClassificationOutcomes, str, list[str]]:
    """Trains linear heads on the training split, unless one is given, and classifies the test split.

    Args:
        evaluated: The model.
        benchmark: The benchmark.
        data: Its data.
        settings: How to run.
        head: Name and head to use instead of training; see :func:`reused_head`.

    Returns:
        Outcomes, name of the head, and notes.
    """
    _, _, notes = evaluated.linear_features(settings.protocol)
    name, trained = fit_linear(evaluated, benchmark, data, settings) if head is None else head
    loader = _loader(evaluated, data.test, _center(evaluated, settings), settings)
    labels = torch.as_tensor(data.test["label"][:])
    check_classes(labels, data.num_classes, "labels")
    known = None
    if head is not None and benchmark.known_classes and not settings.protocol.all_classes:
        known = torch.tensor(benchmark.known_classes)
        notes.append(f"the reused head answers among {len(known)} classes")
    top5, confidences = _classify(trained, loader, known, evaluated.device)
    counts = None
    if benchmark.long_tail:
        counts = torch.bincount(torch.as_tensor(data.train["label"][:]), minlength=data.num_classes)
    return ClassificationOutcomes(labels, top5, confidences, data.num_classes, counts), name, notes


def measure_knn(
    evaluated: EvaluatedModel, benchmark: Benchmark, data: BenchmarkData, settings: RunSettings
) -> tuple[CountedOutcomes, str, list[str]]:
    """Classifies the test split by its nearest training images; the last of the protocol's inputs with one block.

    Returns:
        Outcomes, what was compared, and notes.
    """
    if data.train is None:
        raise ValueError(f"`task` must not be knn for {benchmark.name!r}, which has no training images")
    _, choices, notes = evaluated.linear_features(settings.protocol)
    tokens = choices[0][0]
    center = _center(evaluated, settings)
    train, train_labels = _tokens(_loader(evaluated, data.train, center, settings), tokens)
    test, labels = _tokens(_loader(evaluated, data.test, center, settings), tokens)
    check_same_classes(train_labels, labels)
    protocol = settings.protocol
    k = min(protocol.knn_neighbours, len(train))
    scores = knn_predict(
        train, train_labels, test, k=k, temperature=protocol.knn_temperature, num_classes=data.num_classes
    )
    return knn_outcomes(scores, labels), f"{tokens}, k={k}, T={protocol.knn_temperature:g}", notes


def fit_linear(
    evaluated: EvaluatedModel, benchmark: Benchmark, data: BenchmarkData, settings: RunSettings
) -> tuple[str, LinearHead]:
    """The best of the protocol's linear heads, chosen on a part of the training split: its name and itself."""
    _, choices, _ = evaluated.linear_features(settings.protocol)
    center = _center(evaluated, settings)
    loader = validation = _loader(evaluated, data.train, center, settings)
    if settings.augment:
        view = crop_for("random_resized_crop", evaluated.spec, center.size, center.resize)
        loader = _model_loader(evaluated, data.train, view, settings)
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
    """Where the head of a benchmark lies for this model, protocol, seed and number of training images."""
    parts = (evaluated.fingerprint, settings.protocol, settings.changes(), settings.seed, max_train_samples)
    return settings.work_dir / "heads" / f"{benchmark_name}-{digest(*parts)}.safetensors"


def save_head(file: Path, name: str, head: LinearHead) -> None:
    """Writes a linear head, with what it reads, for benchmarks that reuse it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = {"name": name, "tokens": head.tokens, "num_blocks": str(head.num_blocks)}
    save_file({key: value.cpu().contiguous() for key, value in head.state_dict().items()}, file, metadata=meta)


def load_head(file: Path) -> tuple[str, LinearHead]:
    """Reads what :func:`save_head` wrote: the head's name and itself."""
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
    return crop_for("center", evaluated.spec, size, settings.resize(size))


def _model_loader(
    evaluated: EvaluatedModel, dataset: object, view: ImageCrop, settings: RunSettings
) -> ModelFeatureLoader:
    features_fn, _, _ = evaluated.linear_features(settings.protocol)
    rows = with_image_transform(dataset, view, seed=settings.seed)
    return ModelFeatureLoader(evaluated.model, rows, features_fn, num_workers=settings.num_workers)


def _loader(evaluated: EvaluatedModel, dataset: object, view: ImageCrop, settings: RunSettings) -> FeatureLoader:
    loader = _model_loader(evaluated, dataset, view, settings)
    data = f"{dataset._fingerprint} {data_fingerprint(dataset)}"
    return cached_loader(evaluated, loader, data, view, settings)


@torch.no_grad()
def _classify(
    head: LinearHead, loader: FeatureLoader, known: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    top5, confidences = [], []
    head = head.to(device).eval()
    for features, _ in loader.iterate(in_order(len(loader), _TEST_BATCH)):
        logits = head({name: tensor.to(device) for name, tensor in features.items()}).float().cpu()
        if known is not None:
            others = torch.ones(logits.shape[1], dtype=torch.bool)
            others[known] = False
            logits[:, others] = -torch.inf
        top5.append(logits.topk(min(5, logits.shape[1]), dim=1).indices)
        confidences.append(logits.softmax(dim=1).amax(dim=1))
    return torch.cat(top5), torch.cat(confidences)


def _tokens(loader: FeatureLoader, tokens: str) -> tuple[Tensor, Tensor]:
    """Features (N, D) of the last block and labels (N,)."""
    features, labels = [], []
    for batch, batch_labels in loader.iterate(in_order(len(loader), _TEST_BATCH)):
        features.append(batch[tokens][:, -1].float().cpu())
        labels.append(batch_labels.cpu())
    return torch.cat(features), torch.cat(labels).long()
