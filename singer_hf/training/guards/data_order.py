"""The order of the images in a resumed run: that of an uninterrupted run, also where the Trainer's own differs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import ImageDataset

_ORDER_OF_A_STREAM = ("dataloader_num_workers", "per_device_train_batch_size", "gradient_accumulation_steps")


class DataOrderMixin:
    """Overrides of `transformers.Trainer` for resuming streams and runs with persistent workers."""

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains, see the base class.

        Raises:
            ValueError: If transformers is older than 5.3 and the checkpoint lies behind the first pass over a stream.
        """
        is_stream = not has_length(self.train_dataset)
        if is_stream and isinstance(resume_from_checkpoint, str) and not hasattr(super(), "_init_training_state"):
            _check_first_pass(self.args, Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Returns the passes over the data that are done, and the batches of the next one that are.

        Raises:
            ValueError: If the data is a stream and a setting that its order depends on differs from the checkpoint's.
        """
        done = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or not self.state.global_step or has_length(self.train_dataset):
            return done
        # The base class takes `max_steps` for the length of a pass over a stream. So does the logged epoch, of which
        # the integer part counts the passes: the fraction gives the batches since the last one began.
        saved = _saved_state(Path(resume_from_checkpoint))
        num_passes = int(saved.epoch)
        if self.args.ignore_data_skip:
            return num_passes, 0
        _check_order(self.args, Path(resume_from_checkpoint))
        return num_passes, round((saved.epoch - num_passes) * saved.max_steps * self.args.gradient_accumulation_steps)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collects the batches of an optimiser step, see the base class.

        Args:
            epoch_iterator: Iterator over batches.
            num_batches: Number of batches.
            device: Device of the counted items.
        """
        with self._kept_random_state(enabled=self.state.global_step > 0):
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluates, see the base class."""
        with self._kept_random_state():
            return super().evaluation_loop(*args, **kwargs)

    def _kept_random_state(self, enabled: bool = True) -> Any:
        # A data loader draws a seed when it starts its workers. Persistent ones start once, in a resumed run later
        # than in an uninterrupted one, and dropout would differ from then on. Our images and their collator draw no
        # other numbers, so that the number of workers does not matter to dropout either.
        own = isinstance(self.train_dataset, ImageDataset) and isinstance(self.data_collator, ImageCollator)
        protected = self.args.dataloader_persistent_workers or own
        return torch.random.fork_rng(devices=[], enabled=enabled and protected)

    @contextmanager
    def _workers_ended(self) -> Iterator[None]:
        """Ends persistent workers after the training, not when the garbage collector comes to the trainer."""
        try:
            yield
        finally:
            for loader in self.accelerator._dataloaders:
                loader = getattr(loader, "base_dataloader", loader)
                if getattr(loader, "_iterator", None) is not None:
                    loader._iterator = None  # the next pass starts new ones


def _saved_state(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def _check_first_pass(args: TrainingArguments, checkpoint: Path) -> None:
    """The Trainer of transformers 5.0 to 5.2 has no method that says where in a stream it goes on."""
    if _saved_state(checkpoint).epoch >= 1:
        raise ValueError(
            "`resume_from_checkpoint` must lie in the first pass over a stream with transformers "
            f"{transformers.__version__}, got {str(checkpoint)!r}; install transformers 5.3 or later"
        )
    if not args.ignore_data_skip:
        _check_order(args, checkpoint)


def _check_order(args: TrainingArguments, checkpoint: Path) -> None:
    file = checkpoint / "training_args.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in _ORDER_OF_A_STREAM:
        if name in saved and saved[name] != getattr(args, name):
            raise ValueError(
                f"`{name}` must be {saved[name]!r}, as in {str(checkpoint)!r}, because the order of a stream depends "
                f"on it, got {getattr(args, name)!r}; `ignore_data_skip=True` starts the pass over the stream again"
            )
