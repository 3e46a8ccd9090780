"""The part of the Trainer that keeps the teacher's features of a few crops of each image on disk."""

import hashlib
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from singer_hf.baselines.fitnet import FitNet
from singer_hf.baselines.singer import Singer
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import ImageDataset
from singer_hf.training.cache.cached_rows import CachedRows
from singer_hf.training.cache.cached_teacher import CachedTeacher
from singer_hf.training.cache.feature_store import FeatureStore
from singer_hf.training.guards.preflight import duration
from singer_hf.training.guards.settings import common_settings

if TYPE_CHECKING:
    from transformers import Trainer

# What the features depend on, of the settings of a run.
_KEY = ("seed", "color_jitter", "bf16", "fp16", "training images", "teacher dtype", "teacher weights")
_SAMPLED_ROWS = 16


class CacheMixin:
    """Overrides of `transformers.Trainer` that give the teacher's cached features to the distiller."""

    def _set_cache(self) -> None:
        """Opens the cache, if the arguments ask for one, and says its size and what it saves."""
        self.cached_teacher: CachedTeacher | None = None
        if self.args.cache_teacher_features is None:
            return
        check_cache(self)
        lead = getattr(self.distiller, "lead", self.distiller)
        self.cached_teacher = teacher = CachedTeacher(lead)
        rows, crops = self.train_dataset, self.args.num_cached_crops
        key = cache_key(self) | {"blocks": teacher.blocks, "crops": crops}
        key["teacher image size"] = list(lead.teacher_input.teacher_image_size)
        with self.args.main_process_first(desc="cache of features"):
            store = FeatureStore(self.args.cache_teacher_features, len(rows), crops, teacher.shape, key)
        teacher.store = store
        self.train_dataset = CachedRows(rows.dataset, rows.transform, rows.seed, rows.normalization is None, store)
        self.add_callback(CommitCallback(store, self.accelerator))
        if self.is_world_process_zero():
            print(describe_cache(store, seconds_per_image(teacher, lead) / self.args.world_size))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes the loss, see the base class; in training from the cached features.

        Args:
            model: The distiller, possibly wrapped.
            inputs: The batch.
            *args: See the base class.
            **kwargs: Likewise.
        """
        with self.cached_teacher.batch(inputs) if self.cached_teacher else nullcontext():
            return super().compute_loss(model, inputs, *args, **kwargs)


class CommitCallback(TrainerCallback):
    """Puts the features on the disk after every epoch and with every checkpoint.

    Args:
        store: The cache.
        accelerator: That of the trainer: no process begins an epoch before all have ended the last one.
    """

    def __init__(self, store: FeatureStore, accelerator: Any) -> None:
        self.store, self.accelerator = store, accelerator

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Commits in all processes."""
        self.store.commit()
        self.accelerator.wait_for_everyone()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Commits what a resumed run will not compute again."""
        self.store.commit()


def check_cache(trainer: "Trainer") -> None:
    """Checks that a run can use a cache, and that some epoch would read it.

    Args:
        trainer: The trainer.

    Raises:
        ValueError: If it cannot; the message names the reason.
    """
    args, rows = trainer.args, trainer.train_dataset
    own = type(rows) is ImageDataset and isinstance(trainer.data_collator, ImageCollator)
    machines = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size)) != args.world_size
    inside = Path(args.cache_teacher_features).resolve().is_relative_to(Path(args.output_dir).resolve())
    for wrong, reason in (
        (trainer.method.name not in (Singer.name, FitNet.name), f"the method {trainer.method.name!r}"),
        (not own, "a stream, or rows or a collator of your own"),
        (trainer.is_fsdp_enabled or args.torch_compile, "FSDP or `torch_compile`"),
        (machines, "processes on several machines"),
        (inside, "a folder in `output_dir`, which is uploaded and replaced"),
    ):
        if wrong:
            raise ValueError(f"`cache_teacher_features` does not work with {reason}; leave it out or change that")
    epochs = args.max_steps * args.images_per_step / len(rows) if args.max_steps > 0 else args.num_train_epochs
    if epochs <= args.num_cached_crops:
        raise ValueError(
            f"`num_cached_crops` must be less than the {epochs:.3g} epochs of the run, or no epoch reads the cache, "
            f"got {args.num_cached_crops}"
        )


def cache_key(trainer: "Trainer") -> dict[str, Any]:
    """Returns what the features of a run's crops depend on, as JSON values; some of the crops stand for all images.

    Args:
        trainer: The trainer.
    """
    settings, rows, digest = common_settings(trainer), trainer.train_dataset, hashlib.sha256()
    key = {name: value for name, value in settings.items() if name in _KEY or name.startswith("image processor")}
    rows.set_epoch(0)
    for index in range(0, len(rows), max(1, len(rows) // _SAMPLED_ROWS)):
        if "pixels" in (row := rows[index]):  # not of a broken image
            digest.update(row["pixels"].numpy().tobytes())
    return key | {"images": digest.hexdigest()[:16]}


def seconds_per_image(teacher: CachedTeacher, lead: Any, num_images: int = 8) -> float:
    """Times the teacher's pass.

    Args:
        teacher: The teacher.
        lead: Its distiller.
        num_images: Images of the timed batch, the second of two.
    """
    device = lead.teacher_view.patch_embedding.weight.device
    images = torch.zeros(num_images, 3, *lead.teacher_input.image_size, device=device)
    for _ in range(2):
        start = time.perf_counter()
        float(teacher.run(images).outputs[teacher.blocks[0]].sum())
    return (time.perf_counter() - start) / num_images


def describe_cache(store: FeatureStore, seconds: float) -> str:
    """Returns a line on the size of a cache and the time until it is complete.

    Args:
        store: The cache.
        seconds: Seconds of the teacher's pass per image, in all processes together.
    """
    left = store.num_rows - store.num_complete
    return (
        f"Teacher features of {store.num_images} images x {store.num_crops} crops take {store.num_bytes / 1e9:.2f} GB "
        f"in {store.folder}, {store.num_complete / store.num_rows:.0%} are there. The teacher's pass, about "
        f"{duration(left * seconds)} for the others, ends with epoch {store.num_crops}."
    )
