"""Saving, loading and pushing of the Trainer: the plain student with adapter, projectors and card."""

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from singer_hf.cards.privacy import without_paths
from singer_hf.training.checkpoint import load_distilled, save_distilled
from singer_hf.training.figures import save_run_figures
from singer_hf.training.guards.settings import write_settings
from singer_hf.training.hub import PushMixin
from singer_hf.training.run_card import write_card

logger = logging.getLogger(__name__)


class SavingMixin(PushMixin):
    """Overrides of `transformers.Trainer` for a distiller, of which only the student is a model of its own."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes student, adapter, projectors and card; outside of checkpoints also the figures of the run."""
        # Drawing runs the distiller, which under FSDP all processes would have to do.
        if self.args.should_save and not self.control.should_save and not self.is_fsdp_enabled:
            save_run_figures(self, output_dir or self.args.output_dir)
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model card from the run into the output folder."""
        if self.is_world_process_zero():
            write_card(self, self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        average = None if self.ema is None else self.ema.average
        self.finite.check_error()
        self.finite.check_weights(self.distiller, self.tensors_to_save(), None, self.state.global_step)
        is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        save_distilled(self.distiller, folder, average, state_dict, resumable=is_checkpoint)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        if is_checkpoint:
            write_settings(self, folder)
        # As text: the base class pickles them, token included.
        settings = self.args.to_dict() | {"save_total_limit": self.args.save_total_limit or self.rotation_limit}
        (folder / "training_args.json").write_text(
            json.dumps(without_paths(settings), indent=2) + "\n", encoding="utf-8"
        )
        write_card(self, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_distilled(self.distiller, resume_from_checkpoint, None if self.ema is None else self.ema.average)

    def _load_best_model(self) -> None:
        logger.info("Loading the best checkpoint %s (%s)", self.state.best_model_checkpoint, self.state.best_metric)
        self._load_from_checkpoint(self.state.best_model_checkpoint)
        self.loaded_step = self.state.best_global_step
