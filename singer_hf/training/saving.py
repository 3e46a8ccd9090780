"""Saving, loading and pushing of the Trainer: the plain student with adapter, projectors and card."""

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from singer_hf.cards.privacy import without_paths
from singer_hf.training.checkpoint import load_distilled, load_student, save_distilled
from singer_hf.training.figures import save_run_figures
from singer_hf.training.guards.settings import write_settings
from singer_hf.training.run_card import write_card
from singer_hf.training.students.best import best_checkpoints, best_steps
from singer_hf.training.students.names import write_names
from singer_hf.training.students.push import StudentsPushMixin
from singer_hf.training.students.student_run import StudentRun

logger = logging.getLogger(__name__)


class SavingMixin(StudentsPushMixin):
    """Overrides of `transformers.Trainer` for a distiller, of which only the student is a model of its own."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes student, adapter, projectors and card; outside of checkpoints also the figures of the run."""
        # Drawing runs the distiller, which under FSDP all processes would have to do.
        if self.args.should_save and not self.control.should_save and not self.is_fsdp_enabled:
            for run in self.runs.values():
                save_run_figures(run, run.folder(output_dir or self.args.output_dir))
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model card from the run into the output folder."""
        for run in self.runs.values() if self.is_world_process_zero() else ():
            write_card(run, run.folder(self.args.output_dir))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.finite.check_error()
        self.finite.check_weights(self.distiller, self.tensors_to_save(), None, self.state.global_step)
        is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        for run in self.runs.values():
            self._save_student(run, run.folder(folder), state_dict, resumable=is_checkpoint)
        if is_checkpoint:
            write_settings(self, folder)
        write_names(folder, self.runs)

    def _save_student(
        self, run: StudentRun, folder: Path, state_dict: dict[str, Tensor] | None, resumable: bool
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_distilled(run.distiller, folder, run.average, state_dict, resumable=resumable)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        # As text: the base class pickles them, token included.
        settings = self.args.to_dict() | {"save_total_limit": self.args.save_total_limit or self.rotation_limit}
        (folder / "training_args.json").write_text(
            json.dumps(without_paths(settings), indent=2) + "\n", encoding="utf-8"
        )
        write_card(run, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        for run in self.runs.values():
            load_distilled(run.distiller, run.folder(resume_from_checkpoint), run.average)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if len(self.runs) == 1 or self.args.metric_for_best_model is None:
            return super()._determine_best_metric(metrics, trial)
        is_best = self.state.global_step in best_steps(self).values()
        if is_best:
            self.state.best_global_step = self.state.global_step
        return is_best

    @property
    def best_checkpoints(self) -> list[str]:
        """The checkpoints that stay beside the last one: the best of the run, or of each of several students."""
        if len(self.runs) > 1 and self.args.metric_for_best_model is not None:
            return list(best_checkpoints(self, self.args.output_dir).values())
        return [self.state.best_model_checkpoint] if self.state.best_model_checkpoint else []

    def _load_best_model(self) -> None:
        if len(self.runs) == 1:
            best = self.state.best_model_checkpoint
            logger.info("Loading the best checkpoint %s (%s)", best, self.state.best_metric)
            self._load_from_checkpoint(best)
            self.loaded_steps = {"": self.state.best_global_step}
            return
        for name, best in best_checkpoints(self, self.args.output_dir).items():
            logger.info("Loading the best checkpoint of %s, %s", name, best)
            run = self.runs[name]
            load_student(run.distiller, run.folder(best), run.average)
            self.loaded_steps[name] = int(Path(best).name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
