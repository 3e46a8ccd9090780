"""Distils a vision transformer into a small student with SiNGER.

The demo, on drawn scenes, without any download:

    accelerate launch examples/distill.py

A run on your images, from any ViT of the Hub, timm or a folder:

    accelerate launch examples/distill.py --teacher_name_or_path facebook/dinov2-large \
        --student_config examples/configs/students/vit-small-patch14.json --dataset_name path/to/images \
        --output_dir outputs/student --num_train_epochs 100 --per_device_train_batch_size 64

or from a YAML file with the same names, `accelerate launch examples/distill.py examples/configs/vit-l_to_vit-t.yaml`.
Every field of SingerTrainingArguments and SingerConfig is a flag: `--help` lists them. The rank of the adapter is
`--rank`, also `--r`, which torchrun takes for one of its own flags.
The teacher is audited first: with artifacts it is distilled with SiNGER, without any as it is. `--method` names the
method instead, `--recipe` sets several settings of SiNGER at once. `--adapter_name_or_path` starts from a cleaned
teacher, whose adapter is frozen or, with `--train_adapter`, trained on.
"""

import os
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
from singer_hf.commands.command_line import CommandParser, expand_file, one_line_errors, settings_to_flags
from singer_hf.commands.distill_flags import ScriptArguments, asks_for_adapter, check_flags, check_prefix_tokens
from singer_hf.commands.teacher_check import choose_method
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.image_dataset import decode_image
from singer_hf.data.image_processors import load_image_processor, student_image_processor
from singer_hf.data.transforms import eval_transform
from singer_hf.demo.run import DemoSettings, run_demo
from singer_hf.evaluation.online_probes import OnlineProbes
from singer_hf.tuner.model import attach_adapter
from singer_hf.vit.loading import load_model, model_from_config

EXAMPLES = Path(__file__).parents[2] / "examples"


def parse() -> tuple[ScriptArguments, SingerTrainingArguments, SingerConfig]:
    """Parses the command line: a YAML file first, if given, then the flags; flags win over the file."""
    parser = CommandParser(ScriptArguments, SingerTrainingArguments, SingerConfig)
    given = expand_file(sys.argv[1:])
    names, known = parser.given_names(given), parser.parse_known_args(given)[0]
    # The last of several flags of one name wins: those on the command line, then the file's, then the recipe's.
    flags = given if known.recipe is None else [*settings_to_flags(recipe_settings(known.recipe)), *given]
    script, args, peft_config = parser.parse(flags)
    if script.method is None and asks_for_adapter(script, names):
        script.method = Singer.name
    check_flags(make_method(script.method or Singer.name, script.settings()), names, peft_config)
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
    rows = load_split(script, script.train_split, number, seed)
    transform = eval_transform(processor)
    images = [transform(decode_image(row["image"])) for row in rows]
    return list(torch.stack(images).split(8))


def prepare_teacher(
    script: ScriptArguments, args: SingerTrainingArguments, peft_config: SingerConfig
) -> tuple[Method, nn.Module]:
    """Returns the method, chosen by an audit of the teacher where none is given, and the prepared teacher.

    Args:
        script: The script's flags.
        args: The training flags.
        peft_config: The flags of the adapter.
    """
    teacher = load_model(script.teacher_name_or_path, "teacher_name_or_path")
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


def demo() -> None:
    """Runs the demo in one process and on one GPU, however many the launcher started."""
    if os.environ.get("RANK", "0") != "0":
        return
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    run_demo(DemoSettings(teacher=str(EXAMPLES / "demo_teacher")))


@one_line_errors()
def main() -> None:
    """Runs the command; without arguments the demo."""
    if len(sys.argv) == 1:
        demo()
        return
    script, args, peft_config = parse()
    set_seed(args.seed)
    if script.student_config is None:
        student = load_model(script.student_name_or_path, "student_name_or_path")
    else:
        student = model_from_config(script.student_config)
    processor = load_image_processor(script.image_processor) or load_image_processor(script.student_name_or_path)
    processor = processor or student_image_processor(student, load_image_processor(script.teacher_name_or_path))
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
    check_prefix_tokens(trainer.distiller, peft_config.num_prefix_tokens)
    if script.evaluators:
        train, test = (load_split(script, split, None, args.seed) for split in (script.train_split, script.eval_split))
        probes = OnlineProbes(train, test, trainer.processing_class, probes=script.evaluators, seed=args.seed)
        trainer.evaluators.append(probes)
    if trainer.is_world_process_zero():
        print(f"recipe: {script.recipe or DEFAULT_RECIPE}", trainer.describe(), sep="\n")
    trainer.train(resume_from_checkpoint=script.resume or args.resume_from_checkpoint)
    trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub()
