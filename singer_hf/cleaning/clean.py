"""`clean`: trains the adapters that remove a teacher's artifacts, and writes adapter, card and page."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from singer_hf.baselines.cleanups.register_method import TestTimeRegister
from singer_hf.cleaning.card import write_cleaning_card
from singer_hf.cleaning.images import CleaningInputs, check_number, is_of_images, load_training_images
from singer_hf.cleaning.plan import plan_cleaning
from singer_hf.cleaning.registers import clean_with_registers
from singer_hf.cleaning.report import CleaningReport
from singer_hf.data.batches.image_batches import load_batches
from singer_hf.data.image_processors import load_image_processor
from singer_hf.distillation.losses import check_choice
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.run import check_size
from singer_hf.training.adapter.arguments import CleaningArguments
from singer_hf.training.adapter.trainer import AdapterTrainer
from singer_hf.training.build import name_of
from singer_hf.tuner.checks import check_no_other_adapters
from singer_hf.tuner.config import SingerConfig
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.tuner.model import attach_adapter
from singer_hf.vit.loading import load_model
from singer_hf.vit.structure import view_vit

METHODS = ("singer", TestTimeRegister.name)
# Fields of CleaningArguments that may be given without a training.
_UNTRAINED_FIELDS = ("output_dir", "seed", "use_cpu", "report_to", "disable_tqdm")


def clean(
    teacher: nn.Module | str,
    images: Any,
    config: SingerConfig | None = None,
    args: CleaningArguments | None = None,
    *,
    method: str = "singer",
    processor: Any = None,
    split: str = "train",
    image_column: str | None = None,
    max_samples: int | None = None,
    num_audit_images: int = 256,
    resume_from_checkpoint: str | bool | None = None,
    **settings: Any,
) -> nn.Module:
    """Trains an adapter that removes the artifacts of a vision transformer, without a student.

    The teacher is audited first. Adapters stand behind the blocks in which its outliers begin, so that all later
    blocks read refined tokens (SiNGER, arXiv 2509.20986, with the adapter inline). They are trained by L_outlier and
    L_info, see :class:`singer_hf.distillation.adapter.cleaner.TeacherCleaner`. A teacher without artifacts is left
    alone: its adapter, behind the default blocks, changes no bit of its features.

    Args:
        teacher: A vision transformer, a local folder or a Hub id. Its weights are frozen in place.
        images: Images that are like those the teacher will see: a dataset of the `datasets` library with an image
            column, a local folder, a Hub id, or any dataset whose rows have ``pixel_values`` normalised for the
            teacher. Labels are not used.
        config: Configuration of the adapter. Its ``layers_to_transform`` overrides the choice by the audit.
        args: Arguments of the training. Into its ``output_dir`` go the adapter with its card, ``report.html``,
            ``audit.json`` and checkpoints; with ``push_to_hub`` they are uploaded.
        method: ``"singer"``, or ``"test_time_register"``, which needs no training but one token more, and is installed
            in the teacher itself, see :mod:`singer_hf.cleaning.registers`.
        processor: Image processor of the teacher. None: the one saved with it.
        split: Split of a folder or Hub id.
        image_column: Column with the images. None: the only image column.
        max_samples: At most this many images, drawn by the seed. None: all.
        num_audit_images: Images of both audits, before and after; at most those there are.
        resume_from_checkpoint: A checkpoint, or True for the last complete one in ``output_dir``.
        **settings: Fields of :class:`CleaningArguments`, instead of ``args``: ``clean(teacher, images, max_steps=100,
            output_dir="cleaned")``. Without ``output_dir`` nothing is written.

    Returns:
        The cleaned teacher, a ``PeftModel`` in eval mode; ``save_pretrained(folder)`` writes its adapter. With a
        test-time register the teacher itself.

    Raises:
        ValueError: If the teacher carries an adapter already, there are too few images, they do not have the teacher's
            size, or an argument does not fit.
        FileNotFoundError: If there is no such teacher or dataset.
    """
    if args is not None and settings:
        raise ValueError(f"`args` must be left out if its fields are given one by one, got {sorted(settings)}")
    check_choice("method", method, METHODS)
    given = {"config": config, "resume_from_checkpoint": resume_from_checkpoint or None}
    check_untrained(method, [*settings, *(name for name, value in given.items() if value is not None)])
    if args is not None and args.push_to_hub:
        check_untrained(method, ["push_to_hub"])
    with _arguments(args, settings) as (args, keep):
        set_seed(args.seed)
        dataset = load_training_images(images, split, image_column, max_samples, args.seed)
        inputs = _load(teacher, dataset, processor, num_audit_images, args)
        plan = plan_cleaning(audit(inputs.teacher, inputs.batches, name=inputs.name), config)
        if args.process_index == 0:
            print(*plan.reasons, sep="\n")
        model = inputs.teacher
        if not plan.blocks:
            model = attach_adapter(model, config or SingerConfig()) if method == "singer" else model
            return model.eval().requires_grad_(False)
        report = CleaningReport.begin(inputs, plan)
        if method == TestTimeRegister.name:
            model = clean_with_registers(report, args.output_dir if keep else None)
        else:
            source = images if isinstance(images, str) else None
            model = _trained(report, config, args, keep, resume_from_checkpoint, source)
        if args.process_index == 0:
            print(*report.lines(), sep="\n")
    return model.eval().requires_grad_(False)


def check_untrained(method: str, names: Iterable[str]) -> None:
    """Checks that a clean-up without training is given no settings of a training.

    Args:
        method: One of `METHODS`.
        names: Settings that were given.

    Raises:
        ValueError: If one of them would do nothing.
    """
    wrong = sorted(set(names) - set(_UNTRAINED_FIELDS))
    if method == TestTimeRegister.name and wrong:
        raise ValueError(
            f"`{wrong[0]}` must be left out for `method={method!r}`, which has no adapter, no training and no upload"
        )


@contextmanager
def _arguments(args: CleaningArguments | None, settings: dict[str, Any]) -> Iterator[tuple[CleaningArguments, bool]]:
    """The arguments, and whether the run's folder is to be kept: without one a temporary folder is used."""
    if args is not None or "output_dir" in settings:
        yield args or CleaningArguments(**settings), True
        return
    if settings.get("push_to_hub"):
        raise ValueError("`push_to_hub` needs an `output_dir`; name the folder of the adapter")
    folder = tempfile.mkdtemp(prefix="singer_clean_")
    try:
        quiet = {"save_strategy": "no", "report_to": "none"}
        yield CleaningArguments(output_dir=folder, **quiet | settings), False
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _load(
    teacher: nn.Module | str, dataset: Any, processor: Any, number: int, args: CleaningArguments
) -> CleaningInputs:
    if number < 1:
        raise ValueError(f"`num_audit_images` must be at least 1, got {number!r}")
    model, name = load_model(teacher, "teacher"), name_of(teacher)
    check_no_other_adapters(model)
    if layers := find_singer_layers(model):
        raise ValueError(
            f"`teacher` must have no adapter yet, it has SiNGER adapters behind the blocks {sorted(layers)}; pass the "
            "plain teacher (`teacher.unload()`)"
        )
    processor = processor or load_image_processor(name)
    if processor is None and is_of_images(dataset):
        raise ValueError(
            "`processor` must be given for a dataset of images: the teacher was not loaded from a folder or Hub id "
            "with an image processor"
        )
    batches = load_batches(dataset, processor, number, seed=args.seed)
    label = Path(name).name if name else type(model).__name__
    check_size(model, batches[0], label)
    rows, columns = view_vit(model).grid(*batches[0].shape[-2:])
    check_number(batches, rows * columns)
    return CleaningInputs(model.to(args.device), label, dataset, processor, batches)


def _trained(
    report: CleaningReport,
    config: SingerConfig | None,
    args: CleaningArguments,
    keep: bool,
    resume: str | bool | None,
    source: str | None,
) -> nn.Module:
    model = attach_adapter(report.inputs.teacher, report.plan.configure(config))
    trainer = AdapterTrainer(
        model,
        args,
        report.inputs.dataset,
        report.inputs.processor,
        write_card=lambda trainer, folder: write_cleaning_card(trainer, folder, report),
        run_facts={"dataset": source},
    )
    trainer.train(resume_from_checkpoint=resume)
    if args.dry_run:
        return model
    report.finish(model)
    if keep:
        _save(trainer, report)
    return model


def _save(trainer: AdapterTrainer, report: CleaningReport) -> None:
    if trainer.is_world_process_zero():
        report.save(Path(trainer.args.output_dir))
    if trainer.args.push_to_hub:
        trainer.push_to_hub()  # saves, and writes the card
        return
    trainer.save_model()
    trainer.create_model_card()
