"""The images of a labelled teacher: stored ones with class labels, or endless scenes."""

from pathlib import Path

import datasets
from transformers import TrainingArguments

from singer_hf.cards.drawing import spread
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.endless.rows import scene_rows
from singer_hf.demo.teacher_settings import ENDLESS_SCENES, TeacherSettings
from singer_hf.vit.loading import load_config

NUM_FITTED_IMAGES = 2_000
SYNTHETIC = "SYNTHETIC: endless scenes, drawn shapes whose class is the shape and texture of the largest one"

_NUM_TEST_SCENES = 2_000
_NUM_LOGGED_IMAGES = 256


def check_length(settings: TeacherSettings, args: TrainingArguments) -> None:
    """Checks that the training on endless scenes has an end.

    Raises:
        ValueError: If it has none.
    """
    if settings.is_endless and settings.teacher_config and args.max_steps < 1:
        raise ValueError(
            f"`--max_steps` must be 1 or more with `--dataset_name {ENDLESS_SCENES!r}`, got {args.max_steps!r}; "
            "endless scenes have no epochs"
        )


def load_teacher_images(
    settings: TeacherSettings, args: TrainingArguments
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Returns the images to train (or to fit the planting) on and those to measure on, with the column ``label``.

    Of endless scenes the first are only those that fit the planting: the training draws its own.

    Args:
        settings: Data of the teacher.
        args: Arguments of the training: seed of subsets and scenes, device that draws the scenes.

    Raises:
        ValueError: If the images have no class labels.
    """
    if not settings.is_endless:
        return (
            _stored_split(settings, settings.train_split, settings.max_train_samples, args.seed),
            _stored_split(settings, settings.test_split, settings.max_test_samples, args.seed),
        )
    size = load_config(settings.teacher_config or settings.trained_teacher, "teacher_config").image_size
    seed, number = scene_seed(args.seed), settings.max_test_samples or _NUM_TEST_SCENES
    train = scene_rows(NUM_FITTED_IMAGES if settings.planted_share else 1, seed, size, args.device)
    return train, scene_rows(number, seed + 1, size, args.device)


def scene_seed(seed: int) -> int:
    """Seed of the training scenes of a run; that of its test scenes is one more."""
    return 2 * seed


def save_scenes(
    settings: TeacherSettings, args: TrainingArguments, size: int, test: datasets.Dataset, folder: Path
) -> None:
    """Writes the first training scenes and the test scenes as a data set, for comparisons and audits.

    Args:
        settings: How many training scenes.
        args: Arguments of the training: seed of the scenes, device that draws them.
        size: Height and width in pixels.
        test: The test scenes.
        folder: Target folder.
    """
    train = scene_rows(settings.saved_scenes, scene_seed(args.seed), size, args.device)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder)


def logged_rows(test: datasets.Dataset) -> datasets.Dataset:
    """At most 256 images, evenly spread over the test images, on which the log of artifacts is measured."""
    return test.select(spread(len(test), _NUM_LOGGED_IMAGES))


def _stored_split(settings: TeacherSettings, split: str, max_samples: int | None, seed: int) -> datasets.Dataset:
    rows = load_image_dataset(settings.dataset_name, split=split, max_samples=max_samples, seed=seed)
    if rows[0].get("label") is None:  # without class folders the column can exist and contain None
        raise ValueError(f"`--dataset_name` must have class labels, got {settings.dataset_name!r} without any")
    return rows
