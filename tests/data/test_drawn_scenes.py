import numpy as np
import pytest
from datasets import ClassLabel, Image

from singer_hf.data.drawn_scenes import CLASS_NAMES, SEGMENT_NAMES, draw_scene, scene_dataset

SCENES = [draw_scene(index) for index in range(200)]


def test_the_same_arguments_draw_the_same_scene():
    first, second = draw_scene(3, seed=5), draw_scene(3, seed=5)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.label == second.label
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_array_equal(first.depth, second.depth)


def test_a_scene_does_not_depend_on_the_scenes_drawn_before_it():
    assert scene_dataset(4)[3]["image"].tobytes() == draw_scene(3).image.tobytes()


@pytest.mark.parametrize("other", [{"index": 1, "seed": 0}, {"index": 0, "seed": 1}])
def test_another_index_or_seed_draws_another_scene(other):
    assert draw_scene(0, 0).image.tobytes() != draw_scene(**other).image.tobytes()


def test_types_shapes_and_ranges_are_as_documented():
    for scene in SCENES:
        assert scene.image.mode == "RGB"
        assert scene.image.size == (64, 64)
        assert (scene.mask.dtype, scene.mask.shape) == (np.uint8, (64, 64))
        assert (scene.depth.dtype, scene.depth.shape) == (np.float32, (64, 64))
        assert scene.mask.max() < len(SEGMENT_NAMES) == 10
        assert scene.depth.min() >= 1
        assert scene.depth.max() <= 10


def test_the_class_is_that_of_the_nearest_pixel():
    for scene in SCENES:
        assert scene.mask.flat[scene.depth.argmin()] == scene.label + 1


def test_objects_stand_in_front_of_the_wall():
    for scene in SCENES:
        assert scene.depth[scene.mask > 0].max() <= 5.2
        assert scene.depth[scene.mask == 0].min() >= 6


def test_the_nearest_object_is_whole_and_never_covered():
    for scene in SCENES:
        nearest = scene.depth < scene.depth.min() + 0.25
        assert not np.any(nearest & (scene.mask != scene.label + 1))
        assert nearest.sum() > 100


def test_every_class_is_drawn_and_none_prevails():
    counts = np.bincount([draw_scene(index, seed=2).label for index in range(900)], minlength=len(CLASS_NAMES))
    assert counts.min() > 60
    assert counts.max() < 140


def test_many_patches_are_smooth_and_many_are_not():
    grey = np.stack([np.asarray(scene.image.convert("L"), dtype=np.float32) for scene in SCENES])
    deviation = grey.reshape(-1, 8, 8, 8, 8).std(axis=(2, 4))
    assert 0.2 < (deviation < 3).mean() < 0.7
    assert (deviation > 20).mean() > 0.1


def test_the_layout_does_not_depend_on_the_size():
    small, large = draw_scene(7, size=32), draw_scene(7, size=128)
    assert small.label == large.label
    assert (small.mask == large.mask[2::4, 2::4]).mean() > 0.97


def test_raw_pixels_do_not_tell_the_class_linearly():
    from sklearn.linear_model import RidgeClassifier

    pixels = np.stack([np.asarray(draw_scene(i).image.resize((16, 16)), dtype=np.float32).ravel() for i in range(600)])
    labels = np.array([draw_scene(i).label for i in range(600)])
    probe = RidgeClassifier(alpha=1e5).fit(pixels[:450], labels[:450])
    assert probe.score(pixels[450:], labels[450:]) < 0.3


def test_the_dataset_holds_what_was_drawn():
    dataset = scene_dataset(3, seed=4)
    assert dataset.column_names == ["image", "label", "annotation", "depth"]
    assert dataset.features["label"] == ClassLabel(names=list(CLASS_NAMES))
    assert isinstance(dataset.features["annotation"], Image)
    for index, row in enumerate(dataset):
        scene = draw_scene(index, seed=4)
        assert row["image"].mode == "RGB"
        assert row["image"].tobytes() == scene.image.tobytes()
        assert row["label"] == scene.label
        np.testing.assert_array_equal(np.asarray(row["annotation"]), scene.mask)
        np.testing.assert_array_equal(np.asarray(row["depth"]), scene.depth)


def test_the_dataset_survives_a_parquet_file(tmp_path):
    from datasets import Dataset

    scene_dataset(2).to_parquet(tmp_path / "scenes.parquet")
    row = Dataset.from_parquet(str(tmp_path / "scenes.parquet"), cache_dir=str(tmp_path))[1]
    np.testing.assert_array_equal(np.asarray(row["depth"]), draw_scene(1).depth)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_scene(-1), "`index` and `seed` must be 0 or more, got -1 and 0"),
        (lambda: draw_scene(0, size=8), "`size` must be at least 16 pixels, got 8"),
        (lambda: scene_dataset(0), "`num_images` must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
