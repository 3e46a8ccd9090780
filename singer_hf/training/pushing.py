"""Uploads of a Trainer that publishes something else than the module it trains."""

from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from singer_hf.training.hub import explain_failed_upload, upload_checkpoint


class PushMixin:
    """Overrides of `transformers.Trainer` for uploads at the end of a run and at its checkpoints."""

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Saves and uploads what the run made, with its card; the local folder stays complete if that fails.

        Raises:
            RuntimeError: If the upload fails; the message has the command that repeats it without training.
        """
        if self.hub_model_id is None:
            # First, so that the folder is complete even where the Hub refuses to create the repository.
            self.save_model(_internal_call=True)
        repo = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name
        with explain_failed_upload(repo, self.args.output_dir):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.signals.received:  # there may be seconds left, and nothing of a stopped run is published
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not busy or self.args.hub_always_push:
            message = f"Training in progress, step {self.state.global_step}"
            jobs = upload_checkpoint(checkpoint_folder, self.hub_model_id, message, self.args)
            self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if busy else ()), *jobs])
