"""The course of a run: its start in the output folder, the checks in every step, its end by a signal."""

import atexit
import gc
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from singer_hf.training.adapter.base_arguments import AdapterArguments
from singer_hf.training.build import check_batch, check_sharded_run
from singer_hf.training.checkpoint import check_disk_space, check_writable
from singer_hf.training.guards.complete import find_problem, is_being_removed, last_complete_checkpoint
from singer_hf.training.guards.finite import FiniteGuard
from singer_hf.training.guards.lock import run_lock
from singer_hf.training.guards.output_folder import (
    check_output_folder,
    check_sources,
    remove_checkpoint,
    remove_earlier_run,
    remove_push_copies,
    rotate_checkpoints,
)
from singer_hf.training.guards.settings import check_settings
from singer_hf.training.guards.signals import StopSignals, stop_message
from singer_hf.vit.running_statistics import settle_statistics

logger = logging.getLogger(__name__)

_PROBED_IMAGES = 8


class RunMixin:
    """Overrides of `transformers.Trainer` that keep a run from being lost, mixed up or silently wrong.

    A trainer has beside it: ``distiller``, the unwrapped module that is trained, with its context ``attached()``;
    ``published``, the module whose weights are saved for others; ``source_names``, what the models were loaded from;
    ``collect_settings()``, what determines the result; ``tensors_to_save(optimizer)``, what a checkpoint holds.
    """

    def _set_guards(self, args: AdapterArguments) -> None:
        self.finite, self.signals = FiniteGuard(args), StopSignals()
        self.run_settings: dict[str, Any] | None = None
        self.saved_step: int | None = None
        # Name of the student -> step of its best checkpoint, once the weights of that are its own.
        self.loaded_steps: dict[str, int] = {}
        self.rotation_limit: int | None = None
        self.is_over = False  # a finished run that was taken up again

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains; with ``resume_from_checkpoint=True`` from the last complete checkpoint, without one from the start.

        SIGTERM and Ctrl-C save a checkpoint at the end of the step and end the process with code 143 or 130.

        Raises:
            ValueError: If the output folder holds another run or is in use, the checkpoint is incomplete or was made
                with other settings, nothing could be trained, or an option does not work with FSDP.
            OSError: If no checkpoint would fit on the disk.
            FloatingPointError: If a loss or weight is NaN or infinite; no checkpoint is overwritten then.
        """
        if self.is_fsdp_enabled:
            check_sharded_run(self.args, resume_from_checkpoint)
        check_batch(self.train_dataset, self.args)
        if self.args.push_to_hub:
            self.warn_of_license()
        self.run_settings, self.loaded_steps = self.collect_settings(), {}
        if self.args.should_save:
            check_writable(self.args.output_dir)
        with run_lock(self.args.output_dir) if self.args.should_save else nullcontext():
            # One process decides: the others would look into a folder that is changing.
            start = [self._find_start(resume_from_checkpoint) if self.args.should_save else None]
            checkpoint = broadcast_object_list(start)[0]
            with self.signals, self.distiller.attached(), self._workers_ended():
                output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
                if self.state.global_step == 0:
                    raise ValueError("the training made no step: `num_train_epochs` or `train_dataset` is too small")
                self._check_finite(weights=True)
        return output

    def get_train_dataloader(self) -> DataLoader:
        """Returns the loader of the training set, whose workers outlive a signal to all processes of the run."""
        return self.signals.protect_workers(super().get_train_dataloader())

    def _find_start(self, resume: str | bool | None) -> str | None:
        """The checkpoint to go on from; None for a new run, for which the output folder is made ready."""
        args, checkpoint = self.args, resume or None
        if resume is True:
            if args.save_only_model:
                raise ValueError("`save_only_model` must be off to resume: its checkpoints have no optimiser state")
            checkpoint = last_complete_checkpoint(args.output_dir)
            if checkpoint is None:
                logger.warning("no complete checkpoint in %s: the run begins at its first step", args.output_dir)
        elif checkpoint and (problem := find_problem(Path(checkpoint))):
            raise ValueError(
                f"`resume_from_checkpoint` must be a complete checkpoint, {checkpoint!r} is not: {problem}"
            )
        check_disk_space(self.distiller, self.published.parameters(), args.output_dir)
        if checkpoint:
            check_settings(self.run_settings, checkpoint)
        elif self.state.global_step == 0 and not args.dry_run:
            self._make_folder_ready(resumed=resume is True)
        remove_push_copies(args.output_dir)
        return checkpoint

    def _make_folder_ready(self, resumed: bool) -> None:
        folder = self.args.output_dir
        if not self.args.overwrite_output_dir:
            check_output_folder(folder, resumed)
        if self.args.overwrite_output_dir or is_being_removed(folder):
            check_sources(folder, *self.source_names)
            remove_earlier_run(folder)

    def _check_finite(self, weights: bool = False) -> None:
        self.finite.check_losses(self.accelerator)
        if weights:
            tensors = self.tensors_to_save(self.optimizer)
            images = None if self.last_pixel_values is None else self.last_pixel_values[:_PROBED_IMAGES]
            with self.compute_loss_context_manager():
                self.finite.check_weights(self.distiller, tensors, images, self.state.global_step)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self.is_over:
            return
        signal_number = self.signals.agreed()
        due = self.control.should_evaluate or self.control.should_save or signal_number
        if due or self.control.should_log:
            self._check_finite(weights=bool(due))
            settle_statistics(self.distiller)
        # What this step owes to the log and the best checkpoint comes first: the resumed run will not do it again.
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if signal_number:
            self._stop(signal_number, model, trial)

    def _stop(self, signal_number: int, model: nn.Module, trial: Any) -> None:
        if self.saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            print(stop_message(signal_number, self._checkpoint_folder(trial)), file=sys.stderr)
        # Frees the loader, which ends its workers, before multiprocessing kills them: that torch takes for a failure.
        atexit.register(gc.collect)
        raise SystemExit(128 + signal_number)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._checkpoint_folder(trial)
        if self.args.should_save:
            remove_checkpoint(Path(folder))
        self.accelerator.wait_for_everyone()
        # The base class would delete by modification time.
        self.rotation_limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = self.rotation_limit
        self.saved_step = self.state.global_step
        if self.args.should_save:
            rotate_checkpoints(Path(folder).parent, self.saved_step, self.rotation_limit, self.best_checkpoints)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The state file, which makes the checkpoint complete, is written when all processes have got here.
        self.accelerator.wait_for_everyone()

    def _checkpoint_folder(self, trial: Any) -> str:
        return str(Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """Collects the batches of an optimiser step, none if all steps are made, see the base class."""
        # A finished run that ended within an epoch: taken up again, the base class would train one step more.
        if self.state.global_step < self.state.max_steps:
            return super().get_batch_samples(*args, **kwargs)
        self.control.should_training_stop = self.is_over = True
        return [], None
