"""Loading of training images: 8 bits from the workers, normalised on the device; as many workers as cores."""

import multiprocessing
import time
import warnings

import pytest
import torch
from adapters import attach
from runs import (
    QUIET,
    differing,
    image_dataset,
    image_processor,
    images_seen,
    make_resumable,
    make_trainer,
    snapshot,
)
from torch.utils.data import default_collate
from zoo import images, tiny_vit

from singer_hf import SingerTrainingArguments
from singer_hf.data import workers
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import prepare_image_dataset
from singer_hf.training.adapter.arguments import CleaningArguments
from singer_hf.training.adapter.trainer import AdapterTrainer

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def received(trainer):
    """The images that the distiller gets in training and evaluation."""
    seen = []
    trainer.distiller.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    return seen


def test_the_loader_sends_8_bits_and_the_distiller_gets_normalised_floats(tmp_path):
    trainer = make_trainer(tmp_path, bare=True, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixels"].dtype == torch.uint8
    assert "pixel_values" not in batch
    prepared = trainer._prepare_inputs(batch)
    assert prepared.keys() == {"pixel_values", "labels"}
    torch.testing.assert_close(prepared["pixel_values"], batch["pixels"].float() / 127.5 - 1, rtol=0, atol=1e-6)
    assert batch["pixels"].dtype == torch.uint8


def test_training_and_evaluation_get_what_normalised_rows_hold(tmp_path):
    options = {"train_dataset": image_dataset(4), "eval_dataset": image_dataset(4), "max_steps": 1}
    trainer = make_trainer(tmp_path, bare=True, train_sampling_strategy="sequential", **options)
    seen = received(trainer)
    trainer.train()
    trainer.evaluate()
    for images_, train in zip(seen[-2:], (True, False), strict=True):
        rows = prepare_image_dataset(image_dataset(4), image_processor(), train=train, seed=3)
        expected = torch.stack([row["pixel_values"] for row in rows])
        torch.testing.assert_close(images_, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("collate", [None, default_collate])
def test_pixel_values_of_one_s_own_pass_unchanged(collate, tmp_path):
    rows = [{"pixel_values": image} for image in images(batch=4)]
    trainer = make_trainer(
        tmp_path, bare=True, train_dataset=rows, max_steps=1, data_collator=collate, processing_class=image_processor()
    )
    (prepared,) = [trainer._prepare_inputs(batch)["pixel_values"] for batch in trainer.get_train_dataloader()]
    assert {image.numpy().tobytes() for image in prepared} == {row["pixel_values"].numpy().tobytes() for row in rows}


def test_a_collator_of_one_s_own_gets_normalised_images(tmp_path):
    trainer = make_trainer(tmp_path, bare=True, data_collator=default_collate)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].min() < 0


def test_the_adapter_s_trainer_normalises_too(tmp_path):
    args = CleaningArguments(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, **QUIET)
    trainer = AdapterTrainer(
        attach(tiny_vit(), r=4, layers_to_transform=[1]), args, image_dataset(4), processing_class=image_processor()
    )
    seen = received(trainer)
    trainer.train()
    rows = prepare_image_dataset(image_dataset(4), image_processor(), train=True, seed=args.seed)
    expected = torch.stack([row["pixel_values"] for row in rows])
    torch.testing.assert_close(seen[0].sum(0), expected.sum(0), rtol=0, atol=1e-5)


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(workers, "count_cores", lambda: 4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def loading(args, dataset):
    args.choose_loading(dataset)
    return args.dataloader_num_workers, args.dataloader_persistent_workers


def prepared_images(number, stream=False):
    dataset = image_dataset(1)
    dataset = dataset.select([0] * number)
    return prepare_image_dataset(dataset.to_iterable_dataset() if stream else dataset, image_processor(), train=True)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("make", [SingerTrainingArguments, CleaningArguments])
def test_many_images_are_loaded_by_one_worker_per_core(make, tmp_path, monkeypatch):
    def args(**given):
        return make(output_dir=str(tmp_path), **QUIET, **given)

    many = prepared_images(500)
    assert loading(args(), many) == (4, True)
    assert loading(args(), prepared_images(499)) == (0, False)
    assert loading(args(dataloader_prefetch_factor=3), prepared_images(3)) == (0, False)
    assert loading(args(), prepared_images(500, stream=True)) == (0, False)
    assert loading(args(), [{"pixel_values": images(batch=1)[0]}] * 500) == (0, False)
    assert loading(args(dataloader_num_workers=0), many) == (0, False)
    assert loading(args(dataloader_num_workers=3, dataloader_persistent_workers=False), many) == (3, False)
    assert loading(args(dataloader_num_workers=3), prepared_images(3)) == (3, True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loading(args(), many) == (2, True)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert loading(args(), many) == (0, False)


def test_memory_is_pinned_for_an_accelerator_only(tmp_path):
    args = SingerTrainingArguments(output_dir=str(tmp_path), report_to="none")
    args.choose_loading([])
    assert args.dataloader_pin_memory == (args.device.type not in ("cpu", "mps"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        next(iter(make_trainer(tmp_path / "run", bare=True, use_cpu=False).get_train_dataloader()))


def test_the_number_of_workers_changes_neither_images_nor_dropout(tmp_path):
    """Three epochs, with dropout in the student; persistent workers draw fewer seeds than new ones."""
    runs = {}
    for name, options in {
        "none": {"dataloader_num_workers": 0},
        "one": {"dataloader_num_workers": 1, "dataloader_persistent_workers": False},
        "two": {"dataloader_num_workers": 2},
    }.items():
        trainer = make_resumable(tmp_path / name, max_steps=12, save_strategy="no", **options)
        seen = images_seen(trainer)
        trainer.train()
        runs[name] = seen, snapshot(trainer.student)
    for name in ("one", "two"):
        assert runs[name][0] == runs["none"][0]
        assert differing(runs[name][1], runs["none"][1]) == set()


def test_no_worker_outlives_the_training(tmp_path):
    trainer = make_trainer(
        tmp_path, bare=True, max_steps=3, eval_dataset=image_dataset(4), eval_strategy="steps", eval_steps=2,
        dataloader_num_workers=1,
    )  # fmt: skip
    before = set(multiprocessing.active_children())
    trainer.train()
    end = time.monotonic() + 20
    while set(multiprocessing.active_children()) - before and time.monotonic() < end:
        time.sleep(0.05)
    assert set(multiprocessing.active_children()) <= before
    assert "eval_loss" in trainer.evaluate()


def test_a_batch_without_a_processor_is_not_touched(tmp_path):
    rows = [{"pixel_values": image} for image in images(batch=4)]
    trainer = make_trainer(
        tmp_path, bare=True, train_dataset=rows, processing_class=None, teacher_processing_class=None
    )
    batch = ImageCollator()(rows)
    assert torch.equal(trainer._prepare_inputs(batch)["pixel_values"], batch["pixel_values"])
