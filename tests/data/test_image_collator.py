import pytest
import torch
from datasets import Dataset
from noise_images import batches, crop, encoded, joined, make_dataset, noise
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import transform_images

BROKEN = {
    "no image": b"not an image",
    "empty": b"",
    "cut off": encoded(noise(0))[:200],
    "damaged": encoded(noise(0))[:60] + b"\x00" * 40 + encoded(noise(0))[100:],
    "cut off jpeg": encoded(noise(0, 64), "jpeg")[:700],
}


def test_batches_hold_float_images_and_their_labels():
    first, *_, last = batches(transform_images(make_dataset(), crop()), batch_size=5)
    assert first["pixel_values"].shape == (5, 3, 8, 8)
    assert first["pixel_values"].dtype == torch.float32
    assert first["labels"].tolist() == [0, 1, 2, 3, 4]
    assert first["labels"].dtype == torch.int64
    assert last["pixel_values"].shape == (2, 3, 8, 8)


def test_labels_are_optional():
    (batch,) = batches(transform_images(make_dataset(labels=False), crop()), batch_size=12)
    assert batch.keys() == {"pixel_values"}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_dropped_and_counted(kind):
    files = [encoded(noise(1)), BROKEN[kind], encoded(noise(2))]
    dataset = select_image_and_label(Dataset.from_dict({"raw": files}), image_column="raw")
    collator = ImageCollator()
    (batch,) = batches(transform_images(dataset, crop()), collator, batch_size=3)
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert (collator.seen, collator.broken) == (3, 1)


@pytest.mark.parametrize("persistent", [False, True])
def test_counts_of_all_workers_and_epochs_reach_the_main_process(persistent):
    rows = transform_images(make_dataset(broken={1, 10}), crop())
    collator = ImageCollator(max_broken_share=0.5)
    loader = DataLoader(rows, batch_size=3, collate_fn=collator, num_workers=2, persistent_workers=persistent)
    for _ in range(2):
        assert len(joined(list(loader))) == 10
    assert (collator.seen, collator.broken) == (24, 4)


def test_more_than_the_allowed_share_stops_the_run_and_names_an_image():
    rows = transform_images(make_dataset(broken={0, 1, 4, 5}), crop())
    with pytest.raises(RuntimeError) as caught:
        batches(rows, batch_size=3)
    message = str(caught.value)
    assert message.startswith(
        "3 of the 6 images loaded so far are broken, more than `max_broken_share` = 0.01 allows; the last one: "
    ) or message.startswith("4 of the 6 images loaded so far are broken")
    assert "row 5 (UnidentifiedImageError: cannot identify image file" in message
    assert message.endswith("). Repair or remove them.")


LIMITS = [(4, 1, False), (50, 2, False), (50, 3, True), (999, 9, False), (1000, 10, False), (1000, 11, True)]


@pytest.mark.parametrize(("seen", "broken", "stops"), LIMITS)
def test_the_share_is_taken_of_at_least_two_hundred_images(seen, broken, stops):
    good, bad = {"pixel_values": torch.zeros(3, 1, 1)}, {"error": "x.png (OSError: cut off)"}
    rows, collator = [good] * (seen - broken) + [bad] * broken, ImageCollator()
    if stops:
        with pytest.raises(RuntimeError, match=f"^{broken} of the {seen} images loaded so far are broken"):
            collator(rows)
    else:
        assert len(collator(rows)["pixel_values"]) == seen - broken


def test_a_batch_without_any_good_image_says_so():
    with pytest.raises(RuntimeError) as caught:
        ImageCollator()([{"error": "x.png (OSError: cut off)"}] * 2)
    assert str(caught.value) == (
        "all 2 images of a batch are broken, for example x.png (OSError: cut off); repair or remove them, or use "
        "larger batches."
    )


def test_bad_settings_and_batches_are_refused():
    with pytest.raises(ValueError, match=r"^`max_broken_share` must be between 0 and 1, got 2\.$"):
        ImageCollator(max_broken_share=2)
    rows = [{"pixel_values": torch.zeros(3, 2, 2), "labels": 1}, {"pixel_values": torch.zeros(3, 2, 2)}]
    with pytest.raises(ValueError, match=r"^`labels` must be given for all images or none, got 1 for 2 images\.$"):
        ImageCollator()(rows)
    dataset = Dataset.from_dict({"raw": [encoded(noise(0, 4)), encoded(noise(0, 5))]})
    uncropped = transform_images(select_image_and_label(dataset, image_column="raw"), v2.PILToTensor())
    with pytest.raises(
        ValueError, match=r"^`transform` must give all images one shape, got \[\(3, 4, 4\), \(3, 5, 5\)\];"
    ):
        ImageCollator()([uncropped[0], uncropped[1]])
