"""The distiller of a run from what the Trainer is given, and the checks at its start."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from singer_hf.baselines.fitnet import FitNet
from singer_hf.baselines.method import Method
from singer_hf.baselines.singer import Singer
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import prepare_image_dataset
from singer_hf.data.image_processors import image_spec
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.student_features import check_two_models
from singer_hf.training.adapter.base_arguments import LoadingArguments
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.tuner import SingerConfig
from singer_hf.tuner.layer import find_singer_layers


def default_method(teacher: nn.Module) -> Method:
    """Returns SiNGER for a teacher with adapters, else FitNet."""
    return Singer() if find_singer_layers(teacher) else FitNet()


def build_distiller(
    method: Method,
    student: nn.Module,
    teacher: nn.Module,
    args: SingerTrainingArguments,
    processor: Any,
    teacher_processor: Any,
    **inputs: Any,
) -> FeatureDistiller:
    """Returns the distiller of one student, with the sizes and normalisations of the image processors.

    Args:
        method: The method.
        student: The student.
        teacher: The teacher, prepared by the method.
        args: The training arguments.
        processor: The student's image processor, or None.
        teacher_processor: The teacher's image processor, or None.
        **inputs: Further arguments of the distiller.

    Raises:
        ValueError: If student and teacher cannot be distilled with these arguments.
    """
    if args.adapter_warmup_steps and "adapter_warmup_steps" not in method.training_fields:
        raise ValueError(
            f"`adapter_warmup_steps` must be 0 for the method {method.name!r}, which trains no new adapter, got "
            f"{args.adapter_warmup_steps}"
        )
    weights = {name: getattr(args, name) for name in method.used_fields if name.endswith("_weight")}
    if not args.kd_weight and not getattr(method, "generation_weight", 0):
        raise ValueError(f"`kd_weight` must be greater than 0, or the student is not trained, got {weights}")
    spec = None if processor is None else image_spec(processor)
    teacher_spec = None if teacher_processor is None else image_spec(teacher_processor)
    return method.make_distiller(
        student,
        teacher,
        args,
        image_size=spec and spec.size,
        student_normalization=spec and (spec.mean, spec.std),
        teacher_normalization=teacher_spec and (teacher_spec.mean, teacher_spec.std),
        **inputs,
    )


def prepare_datasets(
    args: LoadingArguments,
    processor: Any,
    collator: Callable,
    train_dataset: Any,
    eval_dataset: Any,
    image_column: str | None,
) -> dict[str, Any]:
    """Prepares what a trainer was given to train and evaluate on, and chooses how it is loaded.

    Args:
        args: The training arguments; what they leave open about the loading is set.
        processor: Image processor of the images.
        collator: The collator; one of the user's own gets normalised images.
        train_dataset: See :func:`singer_hf.data.image_dataset.prepare_image_dataset`.
        eval_dataset: Likewise.
        image_column: Column with the images, or None.

    Returns:
        The two datasets as arguments of `Trainer`.
    """
    shared = {"image_column": image_column, "seed": args.seed, "normalize": not isinstance(collator, ImageCollator)}
    train = prepare_image_dataset(train_dataset, processor, train=True, color_jitter=args.color_jitter, **shared)
    args.choose_loading(train)
    return {
        "train_dataset": train,
        "eval_dataset": prepare_image_dataset(eval_dataset, processor, train=False, **shared),
    }


def check_models(student: nn.Module, teacher: nn.Module, peft_config: SingerConfig | None) -> None:
    """Checks that student and adapter are trained and that what is saved can be loaded by anyone.

    Args:
        student: The student.
        teacher: The teacher.
        peft_config: Adapter to add to the teacher.

    Raises:
        ValueError: If the student is no transformers model, is the teacher, is frozen or is not in float32, or the
            adapter is configured for inference.
    """
    if not isinstance(student, PreTrainedModel):
        raise ValueError(
            "`model` must be a transformers model, so that anyone can load what is saved, got "
            f"{type(student).__name__}; wrap a timm model as TimmWrapperModel"
        )
    check_two_models(student, teacher)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError(
            "`model` must have weights to train, all of them are frozen; call `model.requires_grad_(True)`"
        )
    dtypes = {str(p.dtype).removeprefix("torch.") for p in student.parameters() if p.is_floating_point()}
    if dtypes != {"float32"}:
        raise ValueError(
            f"`model` must be in float32, got {', '.join(sorted(dtypes))}; load it with `dtype=torch.float32` or call "
            "`model.float()`. For speed set `bf16=True`, which keeps the weights in float32"
        )
    if peft_config is not None and peft_config.inference_mode:
        raise ValueError(
            "`peft_config.inference_mode` must be False: the adapter would not be trained; leave it out, or load a "
            "trained adapter with `PeftModel.from_pretrained` and give that teacher without `peft_config`"
        )


def check_batch(dataset: Any, args: SingerTrainingArguments) -> None:
    """Checks that the training images fill a batch.

    Args:
        dataset: The training dataset.
        args: The training arguments.

    Raises:
        ValueError: If incomplete batches are dropped and there are fewer images than a batch has in all processes.
    """
    images = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and hasattr(dataset, "__len__") and len(dataset) < images:
        raise ValueError(
            f"`dataloader_drop_last` leaves no batch: {len(dataset)} training images, {images} in a batch; take a "
            "smaller `per_device_train_batch_size` or leave the option out"
        )


def check_devices(args: SingerTrainingArguments) -> None:
    """Checks that the process uses one GPU at most: `nn.DataParallel` cannot run the distiller.

    Raises:
        ValueError: If several GPUs are visible to one process.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process; start one process per GPU (`accelerate launch` or "
            "`torchrun --nproc_per_node`), or make a single one visible with CUDA_VISIBLE_DEVICES"
        )


def check_sharded_run(args: SingerTrainingArguments, resume_from_checkpoint: str | bool | None) -> None:
    """Checks that a run under FSDP uses nothing that needs whole weights.

    Args:
        args: The training arguments.
        resume_from_checkpoint: The checkpoint to resume from, if any.

    Raises:
        ValueError: If the run resumes, loads its best checkpoint at the end, or keeps a moving average.
    """
    if resume_from_checkpoint or args.load_best_model_at_end or args.ema_decay is not None:
        raise ValueError(
            "resuming, `load_best_model_at_end` and `ema_decay` do not work with FSDP, which splits the weights; "
            "leave them out or start the run without FSDP (examples/accelerate/multi_gpu.yaml)"
        )


def name_of(model: nn.Module | str) -> str | None:
    """Returns the Hub id or folder a model was given by or loaded from; None if it has none."""
    if isinstance(model, str):
        return model
    return getattr(getattr(model, "config", None), "name_or_path", None) or None
