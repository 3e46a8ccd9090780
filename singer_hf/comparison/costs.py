"""Cost of a training step of each method relative to the baseline."""

import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm.auto import tqdm

from singer_hf.comparison.cells import prepare_trainer
from singer_hf.comparison.study import Study
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.training.trainer import SingerDistillationTrainer


def step_costs(study: Study, num_steps: int = 30, warmup: int = 3) -> dict[str, float]:
    """Median time of a training step (losses, gradients, optimiser) of every method, relative to the baseline.

    The methods alternate step by step, so that other load on the machine affects all of them. Empty without the
    baseline.

    Args:
        study: The comparison.
        num_steps: Measured steps of each method.
        warmup: Unmeasured steps before them.
    """
    if study.baseline not in study.methods:
        return {}
    trainers = {name: _trainer(study, name) for name in study.methods}
    batches = {name: _first_batch(trainer) for name, trainer in trainers.items()}
    optimizers = {name: trainer.create_optimizer() for name, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for step in tqdm(range(num_steps + warmup), "cost of a step"):
        for name, trainer in trainers.items():
            taken = _step(trainer, optimizers[name], batches[name])
            if step >= warmup:
                seconds[name].append(taken)
    baseline = median(seconds[study.baseline])
    return {name: median(values) / baseline for name, values in seconds.items()}


def _trainer(study: Study, name: str) -> SingerDistillationTrainer:
    args = SingerTrainingArguments(
        output_dir=str(Path(study.output_dir) / "costs"),
        max_steps=1,
        save_strategy="no",
        **{"report_to": "none", "bf16": False, "tf32": False}
        | _without_strategies(study.training)
        | dict(study.methods[name].training),
    )
    return prepare_trainer(study, name, study.seeds[0], args)


def _without_strategies(training: dict) -> dict:
    strategies = ("save_", "eval_", "logging_", "load_best_")
    return {name: value for name, value in training.items() if not name.startswith(strategies)}


def _first_batch(trainer: SingerDistillationTrainer) -> Tensor:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))["pixel_values"]


def _step(trainer: SingerDistillationTrainer, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    model = trainer.model.train()
    _synchronise()
    start = time.perf_counter()
    with trainer.accelerator.autocast():
        loss = model(images).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
