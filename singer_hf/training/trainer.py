"""A Trainer that distils: student, projectors and adapters are trained together, the plain student is saved."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy, TrainOutput
from transformers.utils import PushInProgress

from singer_hf.data.image_dataset import ImageCollator
from singer_hf.data.image_processors import load_image_processor, student_image_processor
from singer_hf.data.pixel_values import image_rows
from singer_hf.distillation.artifact_metrics import artifact_metrics
from singer_hf.distillation.distiller import Refiner, SingerDistiller
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.training.build import check_devices, check_sharded_run, check_student, compose, name_of
from singer_hf.training.callbacks import AdapterWarmupCallback, EmaCallback, EpochCallback
from singer_hf.training.checkpoint import (
    check_disk_space,
    check_output_folder,
    last_complete_checkpoint,
    load_distilled,
    save_distilled,
)
from singer_hf.training.hub import upload_checkpoint
from singer_hf.training.loss_averages import ComponentLog, non_finite_component
from singer_hf.training.run_card import write_card
from singer_hf.training.run_figures import save_run_figures
from singer_hf.tuner import SingerConfig
from singer_hf.tuner.model import attach_adapter
from singer_hf.vit.loading import load_model

logger = logging.getLogger(__name__)

# Looks at the student and says figures about it.
Evaluator = Callable[[nn.Module], dict[str, float]]


class SingerDistillationTrainer(Trainer):
    """Distils a teacher's refined features into a student (SiNGER, arXiv 2509.20986).

    ``trainer.model`` is the composite of student, teacher and projectors that is trained; ``trainer.student`` is what
    is evaluated and saved.

    Args:
        model: The student: a transformers model, a local folder or a Hub id.
        teacher_model: The teacher: a model with or without SiNGER adapters, a local folder or a Hub id.
        args: Arguments of the run.
        peft_config: Adapter to put into the teacher. None with a teacher without adapters: plain feature distillation.
        train_dataset: Images: a dataset of the `datasets` library with an image column (transformed on the workers as
            ``processing_class`` says), or any dataset whose rows hold ``pixel_values``.
        eval_dataset: Likewise, or a dict of such.
        processing_class: The student's image processor. None: the one saved with ``model``, else one with the
            teacher's normalisation at the size in the student's config.
        teacher_processing_class: The teacher's image processor. None: the one saved with ``teacher_model``; without
            either the teacher is taken to expect what the student expects.
        evaluators: Callables student -> dict of floats, run at every evaluation; their figures are logged as
            ``eval_<name>`` and serve as ``metric_for_best_model``.
        image_column: Column with the images; found by itself if None.
        refiner: Another clean-up of the teacher's tokens than an adapter (:mod:`singer_hf.baselines.refiners`).
        data_collator: For rows of another form.
        run_facts: Facts for the model card that the trainer cannot know, fields of
            :class:`singer_hf.cards.student_card.CardInfo` such as ``dataset``.
        **kwargs: Everything else a Trainer takes (callbacks, optimizers, ...).

    Raises:
        ValueError: If an argument does not fit; the message says which and what to do.
    """

    _tag_names = ("singer-hf", "knowledge-distillation")

    def __init__(
        self,
        model: nn.Module | str,
        teacher_model: nn.Module | str,
        args: SingerTrainingArguments,
        peft_config: SingerConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        evaluators: Sequence[Evaluator] | None = None,
        image_column: str | None = None,
        refiner: Refiner | None = None,
        data_collator: Callable | None = None,
        run_facts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_devices(args)
        student, teacher = load_model(model, "model"), load_model(teacher_model, "teacher_model")
        check_student(student)
        teacher_processor = teacher_processing_class or load_image_processor(name_of(teacher_model))
        processor = processing_class or load_image_processor(name_of(model))
        processor = processor or student_image_processor(student, teacher_processor)
        self.evaluators, self.run_facts = list(evaluators or []), dict(run_facts or {})
        self.teacher_name = name_of(teacher_model)
        self.components = ComponentLog()
        self.last_pixel_values: Tensor | None = None

        def rows(dataset: Any, train: bool) -> Any:
            if isinstance(dataset, dict):
                return {name: rows(part, train) for name, part in dataset.items()}
            jitter = args.color_jitter if train else 0.0
            return image_rows(
                dataset, processor, train=train, image_column=image_column, color_jitter=jitter, seed=args.seed
            )

        distiller = compose(student, attach_adapter(teacher, peft_config), args, processor, teacher_processor, refiner)
        super().__init__(
            model=distiller,
            args=args,
            train_dataset=rows(train_dataset, train=True),
            eval_dataset=rows(eval_dataset, train=False),
            processing_class=processor,
            data_collator=data_collator or ImageCollator(),
            **kwargs,
        )
        # Our losses are means: the Trainer must divide them by the number of accumulated batches.
        self.loss_is_scaled_for_ga = False
        self.ema = None if args.ema_decay is None else EmaCallback(student, args.ema_decay)
        warmup = AdapterWarmupCallback(distiller, args.adapter_warmup_steps) if args.adapter_warmup_steps else None
        for callback in (EpochCallback(self.train_dataset), self.ema, warmup):
            if callback is not None:
                self.add_callback(callback)

    @property
    def distiller(self) -> SingerDistiller:
        """The composite without any wrapper for compilation or several processes."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def student(self) -> PreTrainedModel:
        """What is evaluated, saved and pushed: the student, or its running average."""
        return self.distiller.student if self.ema is None else self.ema.average

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains; with ``resume_from_checkpoint=True`` from the last checkpoint that was written to its end.

        Raises:
            ValueError: If the output folder holds another run, there is nothing to resume from, or an option does not
                work with FSDP.
            OSError: If no checkpoint would fit on the disk.
            FloatingPointError: If a loss is NaN or infinite; nothing is saved over a good checkpoint.
        """
        output_dir = self.args.output_dir
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"`resume_from_checkpoint=True` found no complete checkpoint in {output_dir!r}")
        if self.is_fsdp_enabled:
            check_sharded_run(self.args, resume_from_checkpoint)
        if not resume_from_checkpoint and not self.args.overwrite_output_dir and self.state.global_step == 0:
            check_output_folder(output_dir)
        if self.args.should_save:
            check_disk_space(self.distiller, output_dir)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The distillation loss of a batch; labels are not looked at."""
        outputs = model(inputs["pixel_values"])
        if model.training:
            self.last_pixel_values = inputs["pixel_values"]
            self._stop_if_not_finite(outputs)
            self.components.add(outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch in evaluation; there are no logits."""
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(self._prepare_inputs(inputs)["pixel_values"])
        self._eval_components.add(outputs)
        return outputs.loss.detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Adds the loss components and the evaluators' figures to the metrics."""
        self._eval_components = ComponentLog()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        figures = self._eval_components.pop_means(self.accelerator)
        student = self.student.eval()
        with torch.no_grad():
            for evaluator in self.evaluators:
                figures.update(evaluator(student))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss components, unweighted means since the last log, and the artifact measures."""
        if "loss" in logs:
            logs.update(self.components.pop_means(self.accelerator))
            if self.args.num_artifact_images and self.last_pixel_values is not None:
                images = self.last_pixel_values[: self.args.num_artifact_images]
                with self.compute_loss_context_manager():
                    logs.update(artifact_metrics(self.distiller, images))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes student, adapter, projectors and card; outside of checkpoints also the pictures of the run."""
        # Drawing runs the composite, which under FSDP all processes would have to do.
        if self.args.should_save and not self.control.should_save and not self.is_fsdp_enabled:
            save_run_figures(self, output_dir or self.args.output_dir)
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model card from the run into the output folder."""
        if self.is_world_process_zero():
            write_card(self, self.args.output_dir)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Saves and uploads student, adapter, projectors and card; the local folder stays whole if that fails.

        Raises:
            RuntimeError: If the upload fails; the message has the command that repeats it without training.
        """
        if self.hub_model_id is None:
            # First, so that the folder is whole even where the Hub refuses to create the repository.
            self.save_model(_internal_call=True)
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception as error:
            repo = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name
            raise RuntimeError(
                f"the upload failed ({type(error).__name__}: {error}). Everything is safe in "
                f"{self.args.output_dir!r}; upload it without training: "
                f'hf upload {repo} {self.args.output_dir} --exclude "checkpoint-*"'
            ) from error

    def _stop_if_not_finite(self, outputs: Any) -> None:
        name = non_finite_component(outputs)
        if name is None:
            return
        step, batch = self.state.global_step + 1, self.components.num_batches
        report = {"step": step, "epoch": self.state.epoch, "component": name, "batch": batch}
        file = Path(self.args.output_dir) / f"non_finite_loss_rank{self.args.process_index}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        raise FloatingPointError(
            f"`{name}` is not finite at step {step} (batch {batch} of this session); written to {str(file)!r}. "
            "Nothing was saved since the last checkpoint. Lower `learning_rate`, use bf16 instead of fp16, or look at "
            "the batch"
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        average = None if self.ema is None else self.ema.average
        is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        save_distilled(self.distiller, folder, average, state_dict, resumable=is_checkpoint)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        # As text: the base class pickles them, token included.
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        write_card(self, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_distilled(self.distiller, resume_from_checkpoint, None if self.ema is None else self.ema.average)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A finished run that ended within an epoch: taken up again, the base class would train one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_best_model(self) -> None:
        logger.info("Loading the best checkpoint %s (%s)", self.state.best_model_checkpoint, self.state.best_metric)
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not busy or self.args.hub_always_push:
            message = f"Training in progress, step {self.state.global_step}"
            jobs = upload_checkpoint(checkpoint_folder, self.hub_model_id, message, self.args)
            self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if busy else ()), *jobs])
