"""The fit loop of all trained heads: many heads, each with its learning rate, in one pass over the features."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm.auto import tqdm

from singer_hf.evaluation.features.feature_loaders import FeatureLoader
from singer_hf.evaluation.heads.fit_settings import Candidate, FitResult, FitSettings
from singer_hf.evaluation.heads.fit_state import load_state, save_state
from singer_hf.evaluation.heads.linear_heads import group_heads, group_logits
from singer_hf.evaluation.heads.logistic_regression import split_validation
from singer_hf.evaluation.heads.tasks import Task
from singer_hf.evaluation.metrics import greater_is_better


def fit_heads(
    candidates: dict[str, Candidate],
    task: Task,
    loader: FeatureLoader,
    settings: FitSettings,
    *,
    validation_loader: FeatureLoader | None = None,
    state_path: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> FitResult:
    """Trains all candidates on the same batches and chooses the best one on a held-out part of the training set.

    Each head has its own loss, gradient and momentum, so the result equals that of training it alone. The test set
    is not used.

    Args:
        candidates: Name -> head and learning rate.
        task: Task with loss and metric.
        loader: The training set.
        settings: How to train.
        validation_loader: The same rows as ``loader`` without random crops; None validates on ``loader`` itself.
        state_path: File for the state after every epoch; the fit resumes from it if it exists.
        device: Device on which the heads are trained.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If there is no candidate, nothing can be learned from the labels, all heads diverge, or the state
            file belongs to another fit.
    """
    if not candidates:
        raise ValueError("`candidates` must hold at least one head, got none")
    choosing = len(candidates) > 1 or settings.patience is not None
    rows, held_out = _split(len(loader), settings) if choosing else (torch.arange(len(loader)), torch.arange(0))
    fit = _Fit(candidates, task, settings, len(rows), torch.device(device))
    held_out_loader = validation_loader or loader
    key = repr((settings, len(loader), [(name, item.learning_rate) for name, item in candidates.items()]))
    if state_path is not None:
        load_state(Path(state_path), key, fit)
    bar = tqdm(total=settings.epochs, initial=fit.epoch, desc="probes", unit="epoch", disable=not progress)
    while fit.epoch < settings.epochs and not fit.out_of_patience():
        fit.train_epoch(loader, rows)
        if settings.patience is not None:
            fit.judge(fit.score(held_out_loader, held_out))
        if state_path is not None:
            save_state(Path(state_path), key, fit)
        bar.update()
    bar.close()
    if choosing and settings.patience is None:
        fit.judge(fit.score(held_out_loader, held_out))
    return fit.result()


@torch.no_grad()
def measure_heads(
    heads: Sequence[nn.Module],
    task: Task,
    loader: FeatureLoader,
    batches: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> list[dict[str, float]]:
    """Computes the metrics of every head over the given batches of rows, in one pass.

    Args:
        heads: The heads; they are put in evaluation mode.
        task: Their task.
        loader: Features and labels.
        batches: Row indices of each batch.
        device: Device of the heads.

    Raises:
        ValueError: If no label counts.
    """
    metrics = [task.new_metric() for _ in heads]
    for head in heads:
        head.eval()
    for features, labels in loader.iterate(batches):
        features, labels = _move(features, labels, device)
        for group in group_heads(heads):
            logits = group_logits([heads[i] for i in group], features)
            for i, scores in zip(group, logits, strict=True):
                metrics[i].add_batch(predictions=task.predict(scores, labels), references=labels)
    return [metric.compute() for metric in metrics]


class _Fit:
    """Heads, optimizer, scheduler and progress of a fit: the content of the state file."""

    def __init__(
        self,
        candidates: dict[str, Candidate],
        task: Task,
        settings: FitSettings,
        num_rows: int,
        device: torch.device,
    ) -> None:
        self.task, self.settings, self.device = task, settings, device
        self.metric = task.new_metric().main_metric()
        self.names = list(candidates)
        self.heads = nn.ModuleList(candidate.head for candidate in candidates.values()).to(device)
        self.rates = [candidate.learning_rate for candidate in candidates.values()]
        groups = [
            {"params": list(head.parameters()), "lr": rate} for head, rate in zip(self.heads, self.rates, strict=True)
        ]
        self.optimizer = torch.optim.SGD(
            groups, momentum=settings.momentum, weight_decay=settings.weight_decay, foreach=True
        )
        steps = settings.epochs * math.ceil(num_rows / settings.batch_size)
        self.scheduler = CosineAnnealingLR(self.optimizer, T_max=steps, eta_min=settings.final_rate)
        self.epoch = 0
        self.scores: dict[str, float] = {}
        self.best: dict[str, object] = {}

    def train_epoch(self, loader: FeatureLoader, rows: Tensor) -> None:
        """One pass over the ``rows`` (M,) of ``loader`` in shuffled order; the first one also checks the labels."""
        loader.set_epoch(self.epoch)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.epoch)
        batches = rows[torch.randperm(len(rows), generator=generator)].split(self.settings.batch_size)
        self.heads.train()
        label_counts = 0
        for features, labels in loader.iterate([batch.tolist() for batch in batches]):
            features, labels = _move(features, labels, self.device)
            if self.epoch == 0:
                label_counts = label_counts + self.task.count_labels(labels)
            self._step(features, labels)
        if self.epoch == 0:
            self.task.check_labels(label_counts)
        self.epoch += 1

    def _step(self, features: dict[str, Tensor], labels: Tensor) -> None:
        self.optimizer.zero_grad()
        for group in group_heads(self.heads):
            logits = group_logits([self.heads[i] for i in group], features)
            # Each group's graph is freed before the next one's is built: the logits of dense heads are large.
            sum(self.task.loss(scores, labels) for scores in logits).backward()
        self.optimizer.step()
        self.scheduler.step()

    def score(self, loader: FeatureLoader, rows: Tensor) -> dict[str, float]:
        """Each head's metric on the held-out rows; NaN for heads whose weights are no longer finite."""
        finite = [i for i, head in enumerate(self.heads) if all(p.isfinite().all() for p in head.parameters())]
        if not finite:
            raise ValueError(f"all {len(self.heads)} heads diverged, at learning rates {self.rates}; lower them")
        batches = [batch.tolist() for batch in rows.split(self.settings.batch_size)]
        metrics = measure_heads([self.heads[i] for i in finite], self.task, loader, batches, self.device)
        scores = dict.fromkeys(self.names, math.nan)
        scores.update({self.names[i]: values[self.metric] for i, values in zip(finite, metrics, strict=True)})
        return scores

    def judge(self, scores: dict[str, float]) -> None:
        """Stores the best head so far; the first candidate wins a tie."""
        sign = 1 if greater_is_better(self.metric) else -1
        known = {name: sign * score for name, score in scores.items() if not math.isnan(score)}
        name = max(known, key=known.get)
        if not self.best or known[name] > self.best["score"]:
            weights = self.heads[self.names.index(name)].state_dict()
            copies = {key: tensor.detach().clone() for key, tensor in weights.items()}
            self.best = {"name": name, "score": known[name], "epoch": self.epoch, "weights": copies}
            self.scores = scores

    def out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and bool(self.best) and self.epoch - self.best["epoch"] >= patience

    def result(self) -> FitResult:
        name = self.best.get("name", self.names[0])
        head = self.heads[self.names.index(name)]
        if self.best:
            head.load_state_dict(self.best["weights"])
        elif not all(p.isfinite().all() for p in head.parameters()):
            raise ValueError(f"the head diverged at the learning rate {self.rates[0]:g}; lower it")
        return FitResult(name, head.eval(), self.scores, self.epoch)


def _split(num_rows: int, settings: FitSettings) -> tuple[Tensor, Tensor]:
    # Labels may be masks and are not loaded yet: a random part, the same for every kind of loader.
    return split_validation(torch.empty(num_rows, 0), settings.validation_share, settings.seed)


def _move(features: dict[str, Tensor], labels: Tensor, device: torch.device | str) -> tuple[dict[str, Tensor], Tensor]:
    return {name: tensor.to(device) for name, tensor in features.items()}, labels.to(device)
