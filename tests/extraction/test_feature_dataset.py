"""Features as columns of a dataset: equal to the tensors, in a file of their own, never those of another model."""

import datasets
import pytest
import torch
import zoo
from adapters import attach
from labelled import colour_dataset, image_folder
from noise_images import encoded, noise
from transformers import ViTImageProcessor

from singer_hf import extract_features

PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32})


def extract(model, images, folder, **options):
    return extract_features(
        model, images, **{"processor": PROCESSOR, "cache_dir": folder, "progress": False, "batch_size": 4, **options}
    )


def column(dataset, name):
    return dataset.with_format("torch")[:][name]


@pytest.mark.parametrize("output", ["map", "tokens"])
@pytest.mark.parametrize("workers", [0, 2])
def test_columns_equal_the_tensors_of_the_same_images(tmp_path, output, workers):
    model, dataset = zoo.tiny("dinov2_registers"), colour_dataset(10)
    found = extract(model, dataset, tmp_path, output=output, layers=[-1, 0], num_workers=workers)
    assert found.column_names == [*dataset.column_names, f"{output}_3", f"{output}_0"]
    assert found["label"][:] == dataset["label"][:]
    assert found.features["label"] == dataset.features["label"]
    assert found[9]["image"].tobytes() == dataset[9]["image"].tobytes()
    tensors = extract(model, [row["image"] for row in dataset], tmp_path, output=output, layers=[-1, 0])
    for index, tensor in tensors.items():
        assert found.features[f"{output}_{index}"].shape == tuple(tensor.shape[1:])
        assert torch.equal(column(found, f"{output}_{index}"), tensor)


def test_another_model_on_the_same_dataset_gives_its_own_features(tmp_path):
    dataset = colour_dataset(6)
    models = zoo.tiny("vit"), zoo.tiny("vit", seed=1), attach(zoo.tiny("vit"))
    found = [column(extract(model, dataset, tmp_path), "map_3") for model in models]
    with models[2].disable_adapter():
        found.append(column(extract(models[2], dataset, tmp_path), "map_3"))
    assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(found[3], found[0])
    assert torch.equal(column(extract(models[0], dataset, tmp_path), "map_3"), found[0])


def test_later_maps_of_two_results_do_not_share_a_cache(tmp_path):
    found = [extract(zoo.tiny("vit", seed=seed), colour_dataset(4), tmp_path) for seed in (0, 1)]
    sums = [part.map(lambda row: {"sum": float(torch.tensor(row["map_3"]).sum())})["sum"][:] for part in found]
    assert sums[0] != sums[1]


def test_several_models_fill_one_dataset_and_a_taken_column_is_refused(tmp_path):
    found = extract(zoo.tiny("vit"), colour_dataset(3), tmp_path)
    both = extract(zoo.tiny("vit", seed=1), found, tmp_path, column_prefix="student")
    assert both.column_names[-2:] == ["map_3", "student_3"]
    assert torch.equal(column(both, "map_3"), column(found, "map_3"))
    message = r"^`column_prefix` must give columns that the dataset does not have, got 'map_3'; choose another one$"
    with pytest.raises(ValueError, match=message):
        extract(zoo.tiny("vit"), found, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_features_are_in_a_file_and_not_in_memory(tmp_path, monkeypatch):
    found = extract(zoo.tiny("vit"), colour_dataset(5), tmp_path)
    (file,) = tmp_path.iterdir()
    assert found.cache_files == [{"filename": str(file)}]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    default = extract(zoo.tiny("vit"), colour_dataset(5), None)
    assert default.cache_files[0]["filename"].startswith(str(tmp_path / "cache" / "singer_hf_features"))
    assert torch.equal(column(default, "map_3"), column(found, "map_3"))


def test_float16_is_stored_as_such(tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        found = extract(zoo.tiny("vit"), colour_dataset(8), tmp_path / dtype, dtype=dtype)
        assert found.features["map_3"].dtype == dtype
        (file,) = (tmp_path / dtype).iterdir()
        sizes[dtype] = file.stat().st_size
    assert sizes["float32"] - sizes["float16"] == pytest.approx(8 * 2 * 32 * 16, rel=0.1)


def test_rows_of_unreadable_images_are_left_out_with_a_warning(tmp_path):
    files = [b"broken" if index in (1, 4, 5) else encoded(noise(index)) for index in range(7)]
    rows = {"image": [{"bytes": file, "path": None} for file in files], "name": list("abcdefg")}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    message = r"^3 of the 7 images cannot be read, their rows are left out: row 1 \(UnidentifiedImageError: .*; row 4 "
    with pytest.warns(UserWarning, match=message):
        found = extract(zoo.tiny("vit"), dataset, tmp_path, batch_size=2)
    assert found["name"][:] == list("acdg")
    tensors = extract(zoo.tiny("vit"), [noise(index) for index in (0, 2, 3, 6)], tmp_path)
    assert torch.allclose(column(found, "map_3"), tensors, atol=1e-5)
    with pytest.raises(ValueError, match=r"^none of the 2 images can be read: row 0 \("):
        extract(zoo.tiny("vit"), dataset.select([1, 4]), tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_subsets_formats_and_named_columns(tmp_path):
    dataset = colour_dataset(6).rename_column("image", "photo").add_column("other", list(range(6)))
    chosen = dataset.select([4, 1, 3]).with_format("numpy", columns=["label"])
    found = extract(zoo.tiny("vit"), chosen, tmp_path, image_column="photo")
    assert found["other"][:] == [4, 1, 3]
    assert found.format["type"] is None
    whole = extract(zoo.tiny("vit"), dataset, tmp_path)
    assert torch.allclose(column(found, "map_3"), column(whole, "map_3")[[4, 1, 3]], atol=1e-5)


def test_a_folder_of_images_becomes_a_dataset(tmp_path):
    folder = image_folder(tmp_path / "photos", {"train": ["a", "b"], "test": ["a"]}, images_per_class=3)
    found = extract(zoo.tiny("vit"), folder, tmp_path / "features", split="train")
    assert found.column_names == ["image", "label", "map_3"]
    assert len(found) == 6
    assert found[0]["image"].size == (16, 16)
    tensors = extract(zoo.tiny("vit"), [row["image"] for row in found], None)
    assert torch.equal(column(found, "map_3"), tensors)
    found.save_to_disk(tmp_path / "saved")
    assert torch.equal(column(datasets.load_from_disk(str(tmp_path / "saved")), "map_3"), tensors)


def test_a_full_disk_is_refused_before_the_work(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("singer_hf.extraction.feature_dataset.shutil.disk_usage", lambda folder: usage)
    message = r"^`cache_dir` must have 9.54e-06 GiB free for the features of 5 images, got '.*' with 9.31e-07 GiB; cho"
    with pytest.raises(ValueError, match=message):
        extract(zoo.tiny("vit"), colour_dataset(5), tmp_path)
    assert list(tmp_path.iterdir()) == []
