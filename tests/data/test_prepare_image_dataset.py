import datasets
import pytest
import torch
from runs import image_dataset, image_processor
from zoo import images

from singer_hf.data.image_dataset import prepare_image_dataset


def test_images_become_pixel_values_and_labels():
    rows = prepare_image_dataset(image_dataset(4), image_processor(), train=False)
    assert len(rows) == 4
    assert rows[3]["pixel_values"].shape == (3, 32, 32)
    assert rows[1]["labels"] == 1


def test_training_crops_and_evaluation_does_not():
    rows = prepare_image_dataset(image_dataset(2), image_processor(), train=True)
    first = rows[0]["pixel_values"]
    rows.set_epoch(1)
    assert not torch.equal(rows[0]["pixel_values"], first)
    plain = prepare_image_dataset(image_dataset(2), image_processor(), train=False)
    expected = image_processor()(image_dataset(2)[0]["image"], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(plain[0]["pixel_values"], expected)


def test_a_dict_of_datasets_is_prepared_part_by_part():
    parts = {"one": image_dataset(2), "two": image_dataset(3)}
    prepared = prepare_image_dataset(parts, image_processor(), train=False)
    assert {name: len(part) for name, part in prepared.items()} == {"one": 2, "two": 3}
    assert prepared["two"][2]["pixel_values"].shape == (3, 32, 32)


def test_a_stream_becomes_a_stream():
    stream = prepare_image_dataset(image_dataset(3).to_iterable_dataset(), image_processor(), train=True)
    assert [row["pixel_values"].shape for row in stream] == [(3, 32, 32)] * 3


def test_what_already_holds_pixel_values_is_left_alone():
    rows = [{"pixel_values": image} for image in images()]
    assert prepare_image_dataset(rows, None, train=True) is rows
    columns = datasets.Dataset.from_dict({"pixel_values": images().tolist()})
    assert prepare_image_dataset(columns, None, train=True) is columns
    own = image_dataset(2).with_transform(
        lambda batch: {"pixel_values": [torch.zeros(3, 8, 8) for _ in batch["image"]]}
    )
    assert prepare_image_dataset(own, None, train=True) is own


def test_the_image_column_can_be_named():
    columns = {name: list(image_dataset(2)["image"]) for name in ("first", "other")}
    two = datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, datasets.Image())))
    with pytest.raises(ValueError, match=r"^`image_column` must be one of the image columns "):
        prepare_image_dataset(two, image_processor(), train=True)
    assert prepare_image_dataset(two, image_processor(), train=True, image_column="other")[0][
        "pixel_values"
    ].shape == (3, 32, 32)
