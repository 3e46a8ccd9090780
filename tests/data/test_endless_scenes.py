"""Endless scenes: a function of seed and index alone, labelled, in 8 bits."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from singer_hf.data.endless.numbers import NumberStream, hash_bits, series_keys, uniform_numbers
from singer_hf.data.endless.rows import SceneIndices, scene_rows
from singer_hf.data.endless.scenes import CLASS_NAMES, draw_endless_scenes
from singer_hf.data.endless.stencils import SHAPES, TEXTURES, shape_maps, texture_tiles

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    return draw_endless_scenes(torch.arange(300), seed=4, size=32)


def test_a_scene_is_the_same_in_any_batch_and_order(scenes):
    images, labels = scenes
    for indices in (torch.tensor([7]), torch.arange(299, -1, -1), torch.tensor([3, 250, 3])):
        some, classes = draw_endless_scenes(indices, seed=4, size=32)
        assert torch.equal(some, images[indices])
        assert torch.equal(classes, labels[indices])


def test_another_seed_and_a_far_index_are_other_scenes(scenes):
    images, _ = scenes
    other, _ = draw_endless_scenes(torch.arange(4), seed=5, size=32)
    far, _ = draw_endless_scenes(torch.arange(2**32 - 4, 2**32), seed=4, size=32)
    for drawn in (other, far):
        assert (drawn - images[:4]).abs().mean() > 0.05
    assert len({image.numpy().tobytes() for image in images}) == 300


def test_layout_and_class_do_not_depend_on_the_size(scenes):
    images, labels = scenes
    large, classes = draw_endless_scenes(torch.arange(4), seed=4, size=128)
    assert torch.equal(classes, labels[:4])
    small = torch.nn.functional.avg_pool2d(large, 4)
    assert (small - images[:4]).abs().mean() < 0.05


def test_images_have_eight_bits_and_all_classes_appear(scenes):
    images, labels = scenes
    assert images.shape == (300, 3, 32, 32)
    assert images.dtype == torch.float32
    steps = images * 255
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert 0 <= images.min() < 0.01
    assert 0.99 < images.max() <= 1
    assert len(CLASS_NAMES) == 100
    assert labels.min() >= 0
    assert set((labels // len(TEXTURES)).tolist()) == set(range(len(SHAPES)))
    assert set((labels % len(TEXTURES)).tolist()) == set(range(len(TEXTURES)))


def test_the_class_is_that_of_a_large_object():
    # A plain object hides what is behind it; a checked one has edges of its own.
    images, labels = draw_endless_scenes(torch.arange(400), seed=0, size=32)
    plain = images[labels % len(TEXTURES) == TEXTURES.index("plain")]
    busy = images[labels % len(TEXTURES) == TEXTURES.index("checked")]
    roughness = [(x[..., 1:] - x[..., :-1]).abs().mean().item() for x in (plain, busy)]
    assert roughness[0] < 0.8 * roughness[1]


def test_hashing_is_one_to_one_and_spreads_evenly():
    values = hash_bits(torch.arange(200_000))
    assert len(values.unique()) == 200_000
    assert values.min() >= 0
    assert values.max() < 2**32
    ones = torch.stack([(values >> bit & 1).float().mean() for bit in range(32)])
    assert (ones - 0.5).abs().max() < 0.01
    assert hash_bits(torch.tensor(0)) == 0


def test_uniform_numbers_are_uniform_and_unrelated_between_places_and_keys():
    keys = series_keys(0, torch.arange(2_000))
    numbers = uniform_numbers(keys, torch.arange(20))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.01)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.002)
    correlations = np.corrcoef(numbers.T.numpy()) - np.eye(20)
    assert np.abs(correlations).max() < 0.1
    assert abs(np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]) < 0.1


def test_a_stream_never_repeats_a_number():
    stream = NumberStream(series_keys(0, torch.arange(2)))
    drawn = torch.cat(
        [stream.uniform(0, 1, 3, 2).flatten(1), stream.uniform(0, 1)[:, None], stream.uniform(0, 1, 4)], 1
    )
    assert drawn.shape == (2, 11)
    assert len(drawn.unique()) == 22
    assert set(stream.below(3).tolist()) <= {0, 1, 2}


def test_textures_are_periodic_and_shapes_of_about_unit_radius():
    tiles, maps = texture_tiles(CPU), shape_maps(CPU)
    assert torch.equal(tiles[:, 0], tiles[:, -1])
    assert torch.equal(tiles[:, :, 0], tiles[:, :, -1])
    assert tiles.min() >= 0
    assert tiles.max() <= 1
    edges = torch.cat([maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1]], dim=1)
    assert edges.min() > 0.1  # outside, so that what lies beyond the map is outside too
    inside = (maps < 0).float().mean(dim=(1, 2)) * 9  # area of a map: 3 x 3
    assert all(0.8 < area < 3.2 for area in inside.tolist())


def test_stored_scenes_are_the_drawn_ones():
    rows = scene_rows(40, seed=4, size=32)
    images, labels = draw_endless_scenes(torch.arange(40), seed=4, size=32)
    assert rows["label"] == labels.tolist()
    assert rows.features["label"].names == list(CLASS_NAMES)
    stored = np.asarray(rows[35]["image"])
    assert np.array_equal(stored, (images[35].permute(1, 2, 0) * 255).round().byte().numpy())
    undecoded = rows.with_format("arrow")[0]["image"][0].as_py()
    assert Image.open(io.BytesIO(undecoded["bytes"])).format == "PNG"


def test_indices_stand_for_the_scenes():
    rows = SceneIndices(3)
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_endless_scenes(torch.arange(1), seed=-1), "`seed` must be from 0 to"),
        (lambda: draw_endless_scenes(torch.arange(1), size=8), "`size` must be at least 16 pixels, got 8"),
        (lambda: scene_rows(0, 0, 32), "`number` must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
