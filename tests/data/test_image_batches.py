"""Batches of images in any form: the pixels of the processor, whichever way they take."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from noise_images import make_dataset, noise
from PIL import Image
from transformers import EfficientNetImageProcessor, ViTImageProcessor

from singer_hf.data.batches.given_images import image_rows, iterate_pixels, take
from singer_hf.data.batches.image_batches import ImageBatches, load_batches
from singer_hf.data.columns import select_image_and_label
from singer_hf.data.decoding import decode_image
from singer_hf.data.transforms import PixelTransform, eval_transform

STD = 0.25
FAST = ViTImageProcessor(size={"height": 24, "width": 32}, image_mean=[0.5] * 3, image_std=[STD] * 3)
SLOW = EfficientNetImageProcessor(size={"height": 24, "width": 32}, resample=2)


def photos(number=5):
    """Smooth JPEG pictures."""
    files = []
    for seed in range(number):
        buffer = io.BytesIO()
        noise(seed, 8).resize((61, 47), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    return select_image_and_label(Dataset.from_dict({"image": files}))


def by_processor(rows, processor):
    images = [decode_image(row["image"]) for row in rows]
    return torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])


def passes(rows, processor):
    """Both ways to batches of a dataset."""
    batches = ImageBatches(rows, eval_transform(processor), 2)
    return torch.cat(list(batches)), torch.cat(load_batches(rows, processor, batch_size=2))


def test_pixels_of_jpegs_are_the_processor_s_within_rounding():
    assert isinstance(eval_transform(FAST), PixelTransform)
    expected = by_processor(photos(), FAST)
    for found in passes(photos(), FAST):
        assert ((found - expected) * STD * 255).abs().max() <= 1.01


def test_a_processor_that_takes_no_bytes_gives_its_own_pixels():
    assert not isinstance(eval_transform(SLOW), PixelTransform)
    expected = by_processor(photos(), SLOW)
    assert all(torch.equal(found, expected) for found in passes(photos(), SLOW))


@pytest.mark.parametrize(("processor", "dtype"), [(FAST, torch.uint8), (SLOW, torch.float32)])
def test_workers_send_bytes_where_the_device_normalises(processor, dtype, monkeypatch):
    sent = []
    monkeypatch.setattr(
        "singer_hf.data.batches.image_batches.to_pixel_values", lambda images, *_: sent.append(images.dtype) or images
    )
    list(ImageBatches(photos(), eval_transform(processor), 2, num_workers=1))
    load_batches(photos(), processor)
    assert set(sent) == {dtype}


def test_unreadable_images_are_left_out_and_listed_once_a_pass():
    batches = ImageBatches(make_dataset(6, broken=(0, 1, 3)), eval_transform(FAST), 2)
    assert [places for places, _ in batches.with_places()] == [[2], [4, 5]]
    expected = by_processor(make_dataset().select([2, 4, 5]), FAST)
    found = torch.cat(list(batches))
    assert [error.split(" (")[0] for error in batches.unreadable] == ["row 0", "row 1", "row 3"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(batches.first(), found[:1])  # and what the whole pass found stays
    assert len(batches.unreadable) == 3
    assert torch.equal(batches.pick([2, 0]), found[[2, 0]])


def test_batches_in_memory_are_the_first_or_a_choice_by_the_seed():
    rows = make_dataset(12)
    whole = torch.cat(load_batches(rows, FAST))
    assert torch.equal(torch.cat(load_batches(rows, FAST, 5, batch_size=2)), whole[:5])
    stream = load_batches(rows.to_iterable_dataset(), FAST, 5, batch_size=2, seed=1)
    assert [len(batch) for batch in stream] == [2, 2, 1]
    assert torch.equal(torch.cat(stream), whole[:5])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat(load_batches(rows, FAST, 5, seed=1)), whole[order[:5]])


def test_many_broken_images_stop_it():
    with pytest.raises(RuntimeError, match=r"^3 of the 12 images loaded so far are broken, more than `max_"):
        load_batches(make_dataset(12, broken=(1, 3, 5)), FAST)


@pytest.mark.parametrize("form", ["tensor", "array", "rows", "lists", "dicts", "batches"])
def test_pixel_values_in_any_form(form):
    pixels = torch.randn(5, 3, 8, 8)
    forms = {"tensor": pixels, "array": pixels.numpy(), "rows": list(pixels), "lists": pixels.tolist()}
    forms |= {"dicts": [{"pixel_values": image.tolist()} for image in pixels], "batches": iter(pixels.split(4))}
    found = list(iterate_pixels(forms[form], 2))
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert torch.equal(torch.cat(found), pixels)


def test_pictures_and_pixel_values_keep_their_order():
    pixels = torch.zeros(2, 3, 24, 32)
    given = [noise(0), noise(1), pixels, noise(2), pixels[0], torch.ones(3, 8, 8)]
    found = list(iterate_pixels(given, 8, lambda: eval_transform(FAST)))
    assert [len(batch) for batch in found] == [2, 2, 2, 1]
    expected = by_processor(make_dataset(3), FAST)
    torch.testing.assert_close(torch.cat([found[0], found[2][:1]]), expected, rtol=0, atol=1e-5)


def test_no_batch_is_asked_for_after_the_last():
    def batches():
        yield torch.zeros(2, 3, 8, 8)
        yield torch.zeros(2, 3, 8, 8)
        raise AssertionError

    assert [len(batch) for batch in take(batches(), 3)] == [2, 1]
    assert [len(batch) for batch in take(batches(), 4)] == [2, 2]


def test_pictures_become_rows_and_pixel_values_do_not():
    assert image_rows(noise(0)).column_names == ["image"]
    assert len(image_rows([noise(0), noise(1)])) == 2
    assert np.array_equal(decode_image(image_rows([noise(1)])[0]["image"]), noise(1))
    assert image_rows(make_dataset()).column_names == ["image", "label"]
    assert image_rows(Dataset.from_dict({"pixel_values": [[0.0]]})) is None
    assert image_rows(torch.zeros(1, 3, 8, 8)) is None
