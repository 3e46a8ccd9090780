"""Images paired with masks and depth maps, and the crops that cut both alike."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from labelled import half_masks
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.decoding import decode_image
from singer_hf.data.transforms import to_rgb
from singer_hf.evaluation.benchmarks.dense_data import DenseRows, DepthDecoder, MaskDecoder, select_dense_columns
from singer_hf.evaluation.benchmarks.image_crops import ImageCrop

NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
KINDS = ("center", "squash", "random_crop", "random_resized_crop")


def crop(kind, size=(8, 8), resize=12):
    return ImageCrop(kind, size, resize, **NORMAL)


def dataset(images, targets, target="annotation"):
    features = Features({"image": ImageFeature(), target: ImageFeature()})
    return Dataset.from_dict({"image": images, target: targets}, features=features)


def coded_rows(kind, number=6, seed=0):
    """Images whose red channel is 40 times the class of the pixel, so that a cut image still tells its mask."""
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 6, (3, 4)).repeat(5, axis=0).repeat(6, axis=1).astype(np.uint8) for _ in range(number)]
    images = [Image.fromarray(np.stack([mask * 40] * 3, axis=2)) for mask in masks]
    columns = select_dense_columns(dataset(images, [Image.fromarray(mask) for mask in masks]), "segmentation")
    return DenseRows(columns, crop(kind), MaskDecoder(), seed)


# Decoding


def test_masks_are_shifted_and_what_does_not_count_becomes_255():
    stored = Image.fromarray(np.array([[0, 1], [150, 255]], dtype=np.uint8))
    decoded = MaskDecoder(ignore_values=(0, 255), offset=-1)(stored)
    assert decoded.dtype == torch.uint8
    assert decoded.tolist() == [[255, 0], [149, 255]]


def test_a_palette_image_is_read_as_indices():
    stored = Image.fromarray(np.array([[0, 2]], dtype=np.uint8), mode="P")
    stored.putpalette([10, 20, 30] * 256)
    assert MaskDecoder()(stored).tolist() == [[0, 2]]


def test_a_mask_of_colours_is_refused():
    with pytest.raises(ValueError, match=r"a mask of class indices must be an image of one channel, got mode 'RGB'"):
        MaskDecoder()(Image.new("RGB", (2, 2)))


def test_an_index_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a mask's class indices must be within 0 and 254, got 700"):
        MaskDecoder()(Image.fromarray(np.array([[700]], dtype=np.uint16)))


def test_millimetres_become_metres_and_floats_stay():
    millimetres = Image.fromarray(np.array([[0, 2500]], dtype=np.uint16))
    assert DepthDecoder(0.001)(millimetres).tolist() == [[0.0, 2.5]]
    metres = Image.fromarray(np.array([[1.5, np.nan]], dtype=np.float32))
    decoded = DepthDecoder(0.001)(metres)
    assert decoded[0, 0] == 1.5
    assert decoded[0, 1].isnan()


# Pairs


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_mask_are_cut_alike(kind):
    rows = coded_rows(kind)
    for row in (rows[i] for i in range(len(rows))):
        assert row["pixels"].shape == (3, 8, 8)
        assert row["labels"].shape == (8, 8)
        assert row["labels"].dtype == torch.uint8
        decoded = row["pixels"][0] / 40
        # Between two classes the image is interpolated; inside the blocks it must tell the mask's class.
        assert ((decoded - row["labels"]).abs() < 0.5).float().mean() > 0.6


def by_pillow(rows, index):
    """The row as Pillow decodes it and torchvision cuts image and target together."""
    row, crop = rows.dataset[index], rows.crop
    image, target = decode_image(row["image"]), rows.decode(decode_image(row["target"]))
    steps = {
        "center": [v2.Resize(12, crop.interpolation), v2.CenterCrop(8)],
        "squash": [v2.Resize((8, 8), crop.interpolation)],
        "random_crop": [v2.Resize(12, crop.interpolation), v2.RandomCrop(8), v2.RandomHorizontalFlip()],
        "random_resized_crop": [
            v2.RandomResizedCrop((8, 8), (0.08, 1), interpolation=crop.interpolation),
            v2.RandomHorizontalFlip(),
        ],
    }
    torch.manual_seed(int(np.random.SeedSequence((rows.seed, 0, index)).generate_state(1, np.uint64)[0]))
    return v2.Compose(steps[crop.kind])(tv_tensors.Image(pil_to_tensor(to_rgb(image))), tv_tensors.Mask(target[None]))


@pytest.mark.parametrize("task", ["segmentation", "depth"])
@pytest.mark.parametrize("kind", KINDS)
def test_jpegs_are_cut_as_by_pillow_within_rounding_and_other_images_and_targets_exactly(kind, task, tmp_path):
    rng, mask, files = np.random.default_rng(0), task == "segmentation", []
    for index in range(3):
        picture = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((61, 47), 3)
        files.append(str(tmp_path / f"{index}.{'jpg' if index else 'png'}"))
        picture.save(files[-1])
    targets = [rng.integers(0, 9 if mask else 60_000, (47, 61)).astype(np.uint8 if mask else np.uint16) for _ in files]
    columns = select_dense_columns(dataset(files, [Image.fromarray(target) for target in targets], "target"), task)
    rows = DenseRows(columns, crop(kind), MaskDecoder() if mask else DepthDecoder(0.001), seed=3)
    for index in range(3):
        image, target = by_pillow(rows, index)
        assert (rows[index]["pixels"].int() - image.int()).abs().max() <= (1 if index else 0)
        assert torch.equal(rows[index]["labels"], target[0])
        assert rows[index]["pixels"].dtype == torch.uint8


def test_masks_are_resized_to_the_nearest_pixel():
    for kind in KINDS:
        rows = coded_rows(kind)
        assert set(rows[0]["labels"].unique().tolist()) <= set(rows.load(0)[1].unique().tolist())


def test_random_crops_are_the_same_for_any_number_of_workers_and_change_with_the_epoch():
    rows = coded_rows("random_crop")
    alone = [rows[i]["pixels"] for i in range(len(rows))]
    worker = [row["pixels"] for row in DataLoader(rows, batch_size=None, num_workers=1)]
    assert all(torch.equal(a, b) for a, b in zip(alone, worker, strict=True))
    rows.set_epoch(1)
    assert not all(torch.equal(a, rows[i]["pixels"]) for i, a in enumerate(alone))


def test_reading_a_row_leaves_the_process_s_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    coded_rows("random_crop")[0]
    assert torch.equal(torch.rand(1), expected)


def test_a_whole_crop_keeps_the_mask_as_it_is_stored():
    rows = DenseRows(
        select_dense_columns(half_masks(1), "segmentation"), crop("whole", resize=10), MaskDecoder((11, 255))
    )
    row = rows[0]
    assert row["pixels"].shape == (3, 10, 15)
    assert row["labels"].shape == (20, 30)
    assert (row["labels"][0] == 255).all()


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"`resize` must be at least the crop's 8 pixels, got 6"):
        crop("center", resize=6)


def test_the_repr_of_a_crop_describes_it_completely():
    assert " at 0x" not in repr(crop("center"))
    assert repr(crop("center")) != repr(crop("center", resize=13))


# Bad input


def test_a_mask_of_another_size_than_its_image_is_refused():
    rows = select_dense_columns(
        dataset([Image.new("RGB", (6, 4))], [Image.fromarray(np.zeros((4, 5), dtype=np.uint8))]), "segmentation"
    )
    message = r"a mask must be of the size of its image \(height, width\) \(4, 6\), got \(4, 5\) in row 0; resize"
    with pytest.raises(ValueError, match=message):
        DenseRows(rows, crop("center"), MaskDecoder())[0]


def test_a_broken_image_is_named_by_its_row():
    rows = select_dense_columns(half_masks(1), "segmentation")
    broken = rows.map(lambda row: {"image": {"bytes": b"no image", "path": None}}, load_from_cache_file=False)
    with pytest.raises(ValueError, match=r"row 0 must hold a readable image and target, got cannot identify"):
        DenseRows(broken, crop("center"), MaskDecoder())[0]


def test_an_image_of_more_pixels_than_pillow_s_limit_is_named_by_its_row(monkeypatch):
    rows = select_dense_columns(half_masks(1), "segmentation")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ValueError, match=r"row 0 must hold a readable image and target, got Image size"):
        DenseRows(rows, crop("center"), MaskDecoder())[0]


def test_columns_are_found_by_their_names():
    images, masks = [Image.new("RGB", (4, 4))], [Image.new("L", (4, 4))]
    assert select_dense_columns(dataset(images, masks, "depth"), "depth").column_names == ["image", "target"]
    # The only other image column is taken whatever it is called.
    assert select_dense_columns(dataset(images, masks, "gt"), "segmentation").column_names == ["image", "target"]


def test_columns_that_cannot_be_found_are_asked_for():
    features = Features(dict.fromkeys(("image", "first", "second"), ImageFeature()))
    picture = [Image.new("L", (4, 4))]
    many = Dataset.from_dict({"image": picture, "first": picture, "second": picture}, features=features)
    with pytest.raises(ValueError, match=r"`target_column` must name one of the image columns .*, got None"):
        select_dense_columns(many, "segmentation")
    with pytest.raises(ValueError, match=r"`target_column` must be one of the image columns .*, got 'third'"):
        select_dense_columns(many, "segmentation", target_column="third")
    assert select_dense_columns(many, "segmentation", target_column="second").column_names == ["image", "target"]


def test_a_folder_of_images_and_masks_is_read_by_its_metadata(tmp_path):
    from singer_hf.evaluation.benchmarks.benchmark import Benchmark
    from singer_hf.evaluation.benchmarks.benchmark_data import load_benchmark

    for split in ("train", "test"):
        _write_pairs(tmp_path / split)
    own = Benchmark("own", "segmentation", str(tmp_path), image_column=None, target_column=None, num_classes=2)
    data = load_benchmark(own)
    rows = DenseRows(data.test, crop("squash"), MaskDecoder((11, 255)))
    assert len(rows) == 2
    assert set(rows[0]["labels"].unique().tolist()) <= {0, 1, 255}
    assert load_image_dataset(tmp_path, image_column="image").column_names == ["image"]  # and still distils


def _write_pairs(folder: Path) -> None:
    folder.mkdir()
    lines = ["file_name,mask_file_name"]
    for i, row in enumerate(half_masks(2)):
        row["image"].save(folder / f"{i}.png")
        row["annotation"].save(folder / f"{i}_mask.png")
        lines.append(f"{i}.png,{i}_mask.png")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def test_stored_bytes_without_the_image_type_are_read_too():
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    plain = [{"bytes": buffer.getvalue(), "path": None}]
    rows = select_dense_columns(Dataset.from_dict({"image": plain, "annotation": plain}), "segmentation")
    assert DenseRows(rows, crop("squash"), MaskDecoder())[0]["labels"].shape == (8, 8)
