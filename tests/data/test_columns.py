import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from grey_images import grey_images, grey_levels, grey_png

from singer_hf.data.columns import select_image_and_label


def test_columns_are_found_by_type_and_renamed():
    dataset = grey_images(2, column="img", text=["a", "b"], fine=[4, 5]).cast_column("fine", ClassLabel(num_classes=9))
    chosen = select_image_and_label(dataset)
    assert chosen.column_names == ["image", "label"]
    assert chosen["label"][:] == [4, 5]


@pytest.mark.parametrize("label", [["a", "b"], [0.5, 1.5]])
def test_a_label_column_without_class_indices_is_left_out(label):
    assert select_image_and_label(grey_images(2, label=label)).column_names == ["image"]


def test_image_column_among_several_is_the_one_called_image_or_the_named_one():
    two = (
        grey_images(2)
        .add_column("mask", [{"bytes": grey_png(9), "path": None}] * 2)
        .cast_column("mask", datasets.Image())
    )
    assert grey_levels(select_image_and_label(two)) == [0, 1]
    assert grey_levels(select_image_and_label(two, image_column="mask")) == [9, 9]
    with pytest.raises(
        ValueError, match=r"^`image_column` must be one of the image columns \['photo', 'mask'\], got None"
    ):
        select_image_and_label(two.rename_column("image", "photo"))


def test_encoded_bytes_plain_structs_and_paths_hold_images_too(tmp_path):
    (tmp_path / "7.png").write_bytes(grey_png(7))
    assert grey_levels(select_image_and_label(Dataset.from_dict({"raw": [grey_png(5)]}), image_column="raw")) == [5]
    assert grey_levels(
        select_image_and_label(
            Dataset.from_dict({"x": [{"bytes": grey_png(6), "path": None}]}).cast(
                Features({"x": {"bytes": Value("binary"), "path": Value("string")}})
            )
        )
    ) == [6]
    assert grey_levels(
        select_image_and_label(Dataset.from_dict({"f": [str(tmp_path / "7.png")]}), image_column="f")
    ) == [7]
