r"""Distils a vision transformer into a small student with SiNGER.

    singer-hf distill                          the demo, on drawn scenes, without any download
    singer-hf distill --config vit-l_to_vit-t  settings from a YAML file or of the package
    singer-hf distill --teacher_name_or_path facebook/dinov2-large --student_config vit-small-patch14 \
        --dataset_name path/to/images --output_dir outputs/student --num_train_epochs 100

On several GPUs: `accelerate launch examples/distill.py` or `accelerate launch -m singer_hf distill`, the same flags.
The teacher is audited first: with artifacts it is distilled with SiNGER, without any as it is. `--method` names the
method instead, `--recipe` sets several settings of SiNGER at once. `--adapter_name_or_path` starts from a cleaned
teacher, whose adapter is frozen or, with `--train_adapter`, trained on. Every field of SingerTrainingArguments and
SingerConfig is a flag. torchrun takes `--r` for one of its own flags; `--rank` is the same.
"""

import sys
from pathlib import Path

import datasets
import torch
from torch import nn
from transformers import set_seed

from singer_hf import SingerConfig, SingerDistillationTrainer, SingerTrainingArguments
from singer_hf.baselines.cleaned import Cleaned
from singer_hf.baselines.method import Method
from singer_hf.baselines.method_table import make_method
from singer_hf.baselines.recipes import DEFAULT_RECIPE, recipe_settings
from singer_hf.baselines.singer import Singer
from singer_hf.commands import demo
from singer_hf.commands.command_line import CommandParser, expand_file, one_line_errors, settings_to_flags
from singer_hf.commands.distill_flags import (
    GROUPS,
    NO_FLAGS,
    ScriptArguments,
    asks_for_adapter,
    check_flags,
    check_prefix_tokens,
)
from singer_hf.commands.teacher_check import choose_method
from singer_hf.configs import RUNS
from singer_hf.data.batches.image_batches import load_batches
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_processors import load_image_processor, student_image_processor
from singer_hf.evaluation.online_probes import OnlineProbes
from singer_hf.training.logs.closing import closing_lines
from singer_hf.tuner.model import attach_adapter
from singer_hf.vit.loading import load_model, model_from_config


def parse(arguments: list[str]) -> tuple[ScriptArguments, SingerTrainingArguments, SingerConfig]:
    """Parses the command line: a YAML file first, if given, then the flags; flags win over the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or a flag is wrong.
    """
    kinds, settings = (ScriptArguments, SingerTrainingArguments, SingerConfig), {"groups": GROUPS, "kind": RUNS}
    parser = CommandParser(*kinds, command="distill", about=__doc__, left_out=NO_FLAGS, **settings)
    given = expand_file(arguments, RUNS)
    names, known = parser.given_names(given), parser.parse_known_args(given)[0]
    # The last of several flags of one name wins: those on the command line, then the file's, then the recipe's.
    flags = given if known.recipe is None else [*settings_to_flags(recipe_settings(known.recipe)), *given]
    script, args, peft_config = parser.parse(flags)
    if script.method is None and asks_for_adapter(script, names):
        script.method = Singer.name
    check_flags(make_method(script.method or Singer.name, script.settings()), names)
    return script, args, peft_config


def load_split(script: ScriptArguments, split: str, max_samples: int | None, seed: int) -> datasets.Dataset:
    """Loads the images of a split.

    Args:
        script: The flags.
        split: Name of the split.
        max_samples: At most this many images.
        seed: Seed of the subset.
    """
    return load_image_dataset(
        script.dataset_name,
        split=split,
        config_name=script.dataset_config,
        image_column=script.image_column,
        streaming=script.streaming,
        max_samples=max_samples,
        shuffle_buffer=script.shuffle_buffer if script.streaming else 0,
        seed=seed,
        revision=script.dataset_revision,
    )


def calibration_images(script: ScriptArguments, seed: int, number: int) -> list[torch.Tensor]:
    """Returns training images in batches (8, 3, H, W), normalised for the teacher.

    Args:
        script: The flags.
        seed: Seed of their choice.
        number: Number of images.

    Raises:
        ValueError: If the teacher has no image processor.
    """
    processor = load_image_processor(script.teacher_name_or_path)
    if processor is None:
        raise ValueError("calibration on training images needs an image processor saved with the teacher")
    return load_batches(load_split(script, script.train_split, number, seed), processor, batch_size=8)


def make_students(script: ScriptArguments) -> nn.Module | dict[str, nn.Module]:
    """Returns the student, or several by the names of their configs.

    Args:
        script: The flags.

    Raises:
        ValueError: If two configs have the same name.
    """
    if script.student_config is None:
        return load_model(script.student_name_or_path, "student_name_or_path")
    if len(script.student_config) == 1:
        return model_from_config(script.student_config[0])
    names = [Path(config).name.removesuffix(".json") for config in script.student_config]
    if len(set(names)) < len(names):
        raise ValueError(f"`--student_config` must have another name for every student, got {names}")
    return {name: model_from_config(c) for name, c in zip(names, script.student_config, strict=True)}


def prepare_teacher(
    script: ScriptArguments, args: SingerTrainingArguments, peft_config: SingerConfig
) -> tuple[Method, nn.Module]:
    """Returns the method, chosen by an audit of the teacher where none is given, and the prepared teacher.

    Args:
        script: The script's flags.
        args: The training flags.
        peft_config: The flags of the adapter.
    """
    form = {"dtype": script.teacher_dtype, "attn_implementation": script.teacher_attn_implementation}
    teacher = load_model(script.teacher_name_or_path, "teacher_name_or_path", **form)
    if script.method is None:
        script.method = _chosen_method(script, args, teacher)
    if script.method == Singer.name:
        if peft_config.nullspace_source == "jacobian":
            peft_config.calibration_images = calibration_images(script, args.seed, script.num_calibration_images)
        return Singer(), attach_adapter(teacher, peft_config)
    method = make_method(script.method, script.settings())
    if script.method == Cleaned.name and args.process_index == 0:
        fate = "trained on" if script.train_adapter else "frozen"
        print(f"no audit: the teacher is refined by the adapter {script.adapter_name_or_path}, which is {fate}")
    images = calibration_images(script, args.seed, script.num_calibration_images) if method.needs_images else ()
    return method, method.prepare(teacher, images, args.seed)


def _chosen_method(script: ScriptArguments, args: SingerTrainingArguments, teacher: nn.Module) -> str:
    if load_image_processor(script.teacher_name_or_path) is None:
        report = "the teacher was not audited, it has no image processor; chosen: SiNGER, which refines outliers only"
        method = Singer.name
    else:
        images = calibration_images(script, args.seed, script.num_audit_images)
        method, report = choose_method(teacher, images, script.teacher_name_or_path)
    if args.process_index == 0:
        print(report)
    return method


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Runs the command; without arguments the demo.

    Args:
        arguments: The flags; None takes those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        demo.main([])
        return
    script, args, peft_config = parse(given)
    set_seed(args.seed)
    student = make_students(script)
    first = next(iter(student.values())) if isinstance(student, dict) else student
    processor = load_image_processor(script.image_processor) or load_image_processor(script.student_name_or_path)
    processor = processor or student_image_processor(first, load_image_processor(script.teacher_name_or_path))
    method, teacher = prepare_teacher(script, args, peft_config)

    trainer = SingerDistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=load_split(script, script.train_split, script.max_train_samples, args.seed),
        eval_dataset=script.eval_split and load_split(script, script.eval_split, script.max_eval_samples, args.seed),
        processing_class=processor,
        method=method,
        run_facts={"dataset": script.dataset_name, "dataset_revision": script.dataset_revision or ""},
    )
    for run in trainer.runs.values():
        check_prefix_tokens(run.distiller, peft_config.num_prefix_tokens)
    if script.evaluators:
        train, test = (load_split(script, split, None, args.seed) for split in (script.train_split, script.eval_split))
        probes = OnlineProbes(train, test, trainer.processing_class, probes=script.evaluators, seed=args.seed)
        trainer.evaluators.append(probes)
    if trainer.is_world_process_zero():
        step = f"learning rate {args.learning_rate:.2g} at {args.images_per_step} images a step"
        print(f"recipe: {script.recipe or DEFAULT_RECIPE}; {step}", trainer.describe(), sep="\n")
    trainer.train(resume_from_checkpoint=script.resume or args.resume_from_checkpoint)
    if args.dry_run:
        return
    trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        for run in trainer.runs.values():
            print(*closing_lines(run), sep="\n")
