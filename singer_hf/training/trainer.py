"""A Trainer that distils: student, projectors and adapters are trained together, the plain student is saved."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from singer_hf.baselines.method import Method
from singer_hf.data.image_collator import ImageCollator
from singer_hf.distillation.artifact_metrics import TEACHER_METRICS, artifact_metrics
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.student_group import StudentGroup
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.training.build import check_devices, check_models, default_method, name_of, prepare_datasets
from singer_hf.training.cache.caching import CacheMixin
from singer_hf.training.callbacks import AdapterWarmupCallback, EmaCallback, EpochCallback
from singer_hf.training.guards.data_order import DataOrderMixin
from singer_hf.training.guards.finite import saved_tensors
from singer_hf.training.guards.preflight import Preflight
from singer_hf.training.guards.settings import run_settings
from singer_hf.training.logs.artifact_images import ArtifactImages
from singer_hf.training.logs.console import show_own_progress
from singer_hf.training.loss_averages import LossAverages, LossMixin
from singer_hf.training.running import RunMixin
from singer_hf.training.saving import SavingMixin
from singer_hf.training.students.group import build_students, check_several, choose_processors, load_students
from singer_hf.training.students.student_run import StudentRun
from singer_hf.tuner import SingerConfig
from singer_hf.tuner.model import attach_adapter
from singer_hf.vit.loading import load_model

# Computes metrics of a student.
Evaluator = Callable[[nn.Module], dict[str, float]]


class SingerDistillationTrainer(CacheMixin, LossMixin, RunMixin, SavingMixin, DataOrderMixin, Trainer):
    """Distils a teacher's features into a student, by default refined by SiNGER (arXiv 2509.20986).

    ``trainer.model`` is the distiller (student, teacher and projectors) that is trained; ``trainer.student`` is the
    model that is evaluated and saved. Of several students ``trainer.runs[name].student`` is.

    Args:
        model: The student: a transformers model, a local folder or a Hub id; or a dict name -> student. Several
            students share the images, one teacher pass and one adapter, and each has a folder ``output_dir/<name>``
            and a repository ``<hub_model_id>-<name>`` of its own; their losses and metrics are logged with the name in
            front, and their best checkpoints are chosen one by one.
        teacher_model: The teacher: a model with or without SiNGER adapters, a local folder or a Hub id.
        args: Arguments of the run.
        peft_config: Adapter to add to the teacher.
        train_dataset: Images: a dataset of the `datasets` library with an image column (transformed on the workers by
            the settings of ``processing_class``), or any dataset whose rows have ``pixel_values``.
        eval_dataset: Likewise, or a dict of such.
        processing_class: The student's image processor. None: the one saved with ``model``, else one with the
            teacher's normalisation at the size in the student's config.
        teacher_processing_class: The teacher's image processor. None: the one saved with ``teacher_model``; without
            either the teacher gets the student's images as they are.
        evaluators: Callables student -> dict of floats, run at every evaluation; their metrics are logged as
            ``eval_<name>`` and can be used as ``metric_for_best_model``.
        image_column: Column with the images. None: the only image column.
        method: Method of distillation (:mod:`singer_hf.baselines`), for which ``teacher_model`` was prepared. None:
            SiNGER for a teacher with an adapter, otherwise plain feature distillation.
        data_collator: For rows of another form.
        run_facts: Facts for the model card that the trainer does not have, fields of
            :class:`singer_hf.cards.student_card.CardInfo` such as ``dataset``.
        **kwargs: Other arguments of `Trainer` (callbacks, optimizers, ...).

    Raises:
        ValueError: If an argument does not fit; the message names it and what to do.
    """

    _tag_names = ("singer-hf", "knowledge-distillation")

    def __init__(
        self,
        model: nn.Module | str | Mapping[str, nn.Module | str],
        teacher_model: nn.Module | str,
        args: SingerTrainingArguments,
        peft_config: SingerConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        evaluators: Sequence[Evaluator] | None = None,
        image_column: str | None = None,
        method: Method | None = None,
        data_collator: Callable | None = None,
        run_facts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_devices(args)
        students, teacher = load_students(model), load_model(teacher_model, "teacher_model")
        for student in students.values():
            check_models(student, teacher, peft_config)
        processor, teacher_processor = choose_processors(
            model, students, teacher_model, processing_class, teacher_processing_class
        )
        teacher = attach_adapter(teacher, peft_config)
        self.method = method or default_method(teacher)
        self.evaluators, self.run_facts = list(evaluators or []), dict(run_facts or {})
        self.teacher_name = name_of(teacher_model)
        self._set_students(students, args)
        self._set_guards(args)
        self._set_losses()
        collator = data_collator or ImageCollator()
        datasets = prepare_datasets(args, processor, collator, train_dataset, eval_dataset, image_column)
        super().__init__(
            model=build_students(students, self.method, teacher, args, processor, teacher_processor),
            args=args,
            processing_class=processor,
            data_collator=collator,
            **datasets,
            **kwargs,
        )
        self.loss_is_scaled_for_ga = False  # means: the Trainer divides them by the number of accumulated batches
        check_several(self)
        self._set_cache()
        self._add_callbacks()

    @property
    def distiller(self) -> FeatureDistiller | StudentGroup:
        """The distiller without any wrapper for compilation or several processes; of several students their group."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def student(self) -> PreTrainedModel:
        """The model that is evaluated, saved and pushed: the student, or its moving average.

        Raises:
            ValueError: If there are several.
        """
        if len(self.runs) > 1:
            raise ValueError(f"this run has several students: take `trainer.runs[name].student`, of {list(self.runs)}")
        return next(iter(self.runs.values())).student

    @property
    def published(self) -> nn.ModuleList:
        """The modules whose weights are saved for others: the students."""
        return nn.ModuleList(run.student for run in self.runs.values())

    @property
    def source_names(self) -> tuple[str | None, ...]:
        """Hub ids or folders that students and teacher were loaded from."""
        return *(name_of(run.distiller.student) for run in self.runs.values()), self.teacher_name

    def collect_settings(self) -> dict[str, Any]:
        """Returns what determines the result of the run, see :func:`run_settings`."""
        return run_settings(self)

    def tensors_to_save(self, optimizer: Any = None) -> dict[str, Tensor]:
        """Returns what a checkpoint holds, tensors (...) by name, see :func:`saved_tensors`."""
        return saved_tensors(self.distiller, list(self.runs.values()), optimizer)

    def describe(self) -> str:
        """Returns a summary of the run: method, models, paired blocks, trained and frozen parameters."""
        texts = [(name, self.method.summarize(run.distiller)) for name, run in self.runs.items()]
        return "\n\n".join(f"{name}:\n{text}" if name else text for name, text in texts)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Computes the loss of a batch in evaluation; there are no logits.

        Args:
            model: The distiller, possibly wrapped.
            inputs: The batch with ``pixel_values`` (B, 3, H, W).
            prediction_loss_only: Not used.
            ignore_keys: Not used.
        """
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(self._prepare_inputs(inputs)["pixel_values"])
        self._eval_averages.add(outputs)
        return outputs.loss.detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Adds the loss components and the evaluators' metrics."""
        self._eval_averages = LossAverages()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = self._eval_averages.pop_means(self.accelerator)
        for run in self.runs.values():
            metrics.update(run.named(self._measure(run.student.eval())))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    @torch.no_grad()
    def _measure(self, student: PreTrainedModel) -> dict[str, float]:
        return {name: value for evaluator in self.evaluators for name, value in evaluator(student).items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss components, unweighted means since the last log, and the artifact metrics."""
        if "loss" in logs:
            logs.update(self.loss_averages.pop_means(self.accelerator))
            images = self.artifact_images.on(self.args.device, self.last_pixel_values)
            if images is not None:
                with self.compute_loss_context_manager():
                    for run in self.runs.values():
                        logs.update(run.named(artifact_metrics(run.distiller, images), shared=TEACHER_METRICS))
        super().log(logs, start_time)

    def _set_students(self, students: Mapping[str, PreTrainedModel], args: SingerTrainingArguments) -> None:
        decay = args.ema_decay
        self.emas = {} if decay is None else {name: EmaCallback(s, decay) for name, s in students.items()}
        averages = {name: ema.average for name, ema in self.emas.items()}
        self.runs = {name: StudentRun(self, name, averages.get(name)) for name in students}

    def _add_callbacks(self) -> None:
        steps = self.args.adapter_warmup_steps
        warmup = AdapterWarmupCallback(self.distiller, steps) if steps else None
        trained = [p for p in self.distiller.parameters() if p.requires_grad]
        preflight = Preflight(self.published.parameters(), trained, self.args.dry_run)
        data = self.train_dataset, self.processing_class, self.data_collator
        self.artifact_images = ArtifactImages(*data, self.args.num_artifact_images, self.args.seed)
        show_own_progress(self)
        for callback in (
            self.artifact_images,
            EpochCallback(self.train_dataset),
            *self.emas.values(),
            warmup,
            preflight,
        ):
            if callback is not None:
                self.add_callback(callback)
