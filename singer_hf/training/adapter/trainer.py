"""A Trainer that trains the adapters of a teacher alone and saves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from singer_hf.cards.privacy import without_paths
from singer_hf.data.image_collator import ImageCollator
from singer_hf.distillation.adapter.cleaner import TeacherCleaner
from singer_hf.training.adapter.arguments import CleaningArguments
from singer_hf.training.build import check_devices, name_of, prepare_datasets
from singer_hf.training.checkpoint import save_adapter
from singer_hf.training.guards.data_order import DataOrderMixin
from singer_hf.training.guards.finite import adapter_tensors
from singer_hf.training.guards.preflight import Preflight
from singer_hf.training.guards.settings import common_settings, write_settings
from singer_hf.training.hub import PushMixin
from singer_hf.training.logs.console import show_own_progress
from singer_hf.training.loss_averages import LossMixin
from singer_hf.training.running import RunMixin

# Writes the card of the run into a folder.
CardWriter = Callable[["AdapterTrainer", Path], None]


class AdapterTrainer(LossMixin, RunMixin, PushMixin, DataOrderMixin, Trainer):
    """Trains the SiNGER adapters of a teacher without a student; the adapter is what is saved, never the teacher.

    Args:
        teacher: A teacher with SiNGER adapters, as from ``get_peft_model``; its name is where it was loaded from.
        args: Arguments of the run.
        train_dataset: Images: a dataset of the `datasets` library with an image column, or any dataset whose rows have
            ``pixel_values`` normalised for the teacher.
        processing_class: The teacher's image processor.
        image_column: Column with the images. None: the only image column.
        write_card: Writes ``README.md`` beside the adapter.
        run_facts: Facts of the run that the trainer does not have: ``dataset``.
        **kwargs: Other arguments of `Trainer`.

    Raises:
        ValueError: If an argument does not fit; the message names it and what to do.
    """

    _tag_names = ("singer-hf", "peft")
    best_checkpoints = ()

    def __init__(
        self,
        teacher: nn.Module,
        args: CleaningArguments,
        train_dataset: Any,
        processing_class: Any = None,
        image_column: str | None = None,
        write_card: CardWriter | None = None,
        run_facts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_devices(args)
        self.teacher_name, self.run_facts, self.write_card = name_of(teacher), dict(run_facts or {}), write_card
        self._set_guards(args)
        self._set_losses()
        collator = kwargs.pop("data_collator", None) or ImageCollator()
        evaluated = kwargs.pop("eval_dataset", None)
        datasets = prepare_datasets(args, processing_class, collator, train_dataset, evaluated, image_column)
        cleaner = TeacherCleaner(teacher, args.objective())
        super().__init__(cleaner, args, collator, processing_class=processing_class, **datasets, **kwargs)
        weights = list(self.published.parameters())
        self.add_callback(Preflight(weights, weights, args.dry_run))
        show_own_progress(self)
        self.loss_is_scaled_for_ga = False
        if self.is_fsdp_enabled:
            raise ValueError(
                "an adapter cannot be trained alone under FSDP: it is small; use examples/accelerate/multi_gpu.yaml"
            )

    @property
    def distiller(self) -> TeacherCleaner:
        """The cleaner without any wrapper for compilation or several processes."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def published(self) -> nn.Module:
        """The modules whose weights are saved: the adapters."""
        return nn.ModuleList(
            m for layer in self.distiller.layers.values() for m in (layer.singer_down, layer.singer_up)
        )

    @property
    def source_names(self) -> tuple[str | None, ...]:
        """Hub id or folder that the teacher was loaded from."""
        return (self.teacher_name,)

    def collect_settings(self) -> dict[str, Any]:
        """Returns what determines the result of the run, as JSON values."""
        return common_settings(self)

    def tensors_to_save(self, optimizer: Any = None) -> dict[str, Tensor]:
        """Returns what a checkpoint holds, tensors (...) by name: adapters and the optimiser's state."""
        return adapter_tensors(self.distiller, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss components, unweighted means since the last log."""
        if "loss" in logs:
            logs.update(self.loss_averages.pop_means(self.accelerator))
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card of the adapter into the output folder."""
        if self.write_card is not None and self.is_world_process_zero():
            self.write_card(self, Path(self.args.output_dir))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.finite.check_error()
        self.finite.check_weights(self.distiller, self.tensors_to_save(), None, self.state.global_step)
        save_adapter(self.distiller.teacher, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            write_settings(self, folder)
        settings = without_paths(self.args.to_dict() | {"save_total_limit": self.rotation_limit})
        (folder / "training_args.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        teacher = self.distiller.teacher
        teacher.load_adapter(resume_from_checkpoint, teacher.active_adapter, is_trainable=True)
