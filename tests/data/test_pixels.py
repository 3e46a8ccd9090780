"""Steps on 8-bit pixels: the crops, flips and colours of version 0.1 within rounding, from the same random numbers."""

import numpy as np
import pytest
import torch
from noise_images import batches, crop, joined, make_dataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import pil_to_tensor, resize
from transformers import ViTImageProcessor

from singer_hf.data.image_collator import ImageCollator
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.image_processors import image_spec
from singer_hf.data.pixels import PixelNormalization, RandomCrop, resize_pixels, stack_pixels
from singer_hf.data.transforms import resize_transform, to_rgb, train_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height=75, width=100):
    values = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), 3)


def processor(resample=3):
    return ViTImageProcessor(size={"height": 32, "width": 48}, resample=resample, image_mean=MEAN, image_std=STD)


def in_steps(difference):
    """A difference of normalised images in steps of 8 bits."""
    return (difference * torch.tensor(STD).view(3, 1, 1) * 255).abs()


def by_pillow(resample, color_jitter=0.0):
    """The training transform of version 0.1."""
    how = {"interpolation": InterpolationMode(Image.Resampling(resample).name.lower()), "antialias": True}
    steps = [to_rgb, v2.RandomResizedCrop((32, 48), **how), v2.RandomHorizontalFlip()]
    steps += [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]
    return v2.Compose([*steps, *end])


@pytest.mark.parametrize("resample", [0, 1, 2, 3], ids=["nearest", "lanczos", "bilinear", "bicubic"])
def test_views_are_those_of_pillow_within_rounding(resample):
    ours, pillow = train_transform(processor(resample)), by_pillow(resample)
    for seed in range(30):
        torch.manual_seed(seed)
        found, following = ours(picture()), torch.rand(1)
        torch.manual_seed(seed)
        expected = pillow(picture())
        assert torch.equal(torch.rand(1), following)
        steps = in_steps(found - expected)
        # Both round twice, once in each direction; bicubic weights are up to 1.2 in sum.
        assert steps.max() <= (2.01 if resample == 3 else 1.01)
        assert (steps > 1.01).float().mean() < 0.001


def test_colour_jitter_is_that_of_pillow_within_rounding():
    ours, pillow = train_transform(processor(), color_jitter=0.4), by_pillow(3, 0.4)
    for seed in range(20):
        torch.manual_seed(seed)
        found = ours(picture())
        torch.manual_seed(seed)
        steps = in_steps(found - pillow(picture()))
        assert steps.max() <= 6  # five roundings, three of them before a factor of up to 1.4
        assert steps.mean() < 1


SHAPES = [(75, 100), (1, 1), (1, 90), (400, 3), (30, 30)]


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_crops_are_those_of_torchvision(shape, scale):
    ratio = (3 / 4, 4 / 3)
    ours = RandomCrop((8, 8), scale, ratio, InterpolationMode.BICUBIC)
    theirs = v2.RandomResizedCrop((8, 8), scale=scale, ratio=ratio)
    for seed in range(200):
        torch.manual_seed(seed)
        box = ours.draw_box(*shape)
        torch.manual_seed(seed)
        expected = theirs.make_params([torch.zeros(3, *shape)])
        assert box == tuple(expected[name] for name in ("top", "left", "height", "width"))


MODES = [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.LANCZOS]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_resizing_is_that_of_pillow_within_rounding(mode, fast, monkeypatch):
    monkeypatch.setattr("singer_hf.data.pixels._resizes_bytes", lambda: fast)
    for size in ((20, 30), (75, 100), (120, 90)):
        found = resize_pixels(pil_to_tensor(picture()), size, mode)
        expected = pil_to_tensor(resize(picture(), list(size), mode))
        assert found.dtype == torch.uint8
        assert (found.int() - expected.int()).abs().max() <= 1


def test_normalisation_is_that_of_the_formula():
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 4, 256)
    found = PixelNormalization(MEAN, STD)(pixels)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    expected = (pixels.double() / 255 - mean) / std
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    assert pixels.dtype == torch.uint8


def test_stacked_pixels_stay_as_they_lie_in_memory_and_pixel_values_do_not():
    rows = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    images = [row.permute(2, 0, 1) for row in rows]
    expected = torch.stack(images)
    stacked = stack_pixels(images)
    assert torch.equal(stacked, expected)
    assert stacked.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(stack_pixels([image.contiguous() for image in images]), expected)
    assert stack_pixels([image.float() for image in images]).is_contiguous()
    assert PixelNormalization(MEAN, STD)(stacked).is_contiguous()
    assert torch.equal(PixelNormalization(MEAN, STD)(stacked), PixelNormalization(MEAN, STD)(expected))


def test_rows_of_pixels_are_those_that_are_normalised_later():
    whole, part = (transform_images(make_dataset(), crop(), seed=1, normalize=value) for value in (True, False))
    assert whole.normalization is None
    first, *rest = batches(part, batch_size=5)
    assert first.keys() == {"pixels", "labels"}
    assert (first["pixels"].dtype, first["pixels"].shape) == (torch.uint8, (5, 3, 8, 8))
    pixels = part.normalization(joined([first, *rest], "pixels"))
    assert torch.equal(pixels, joined(batches(whole, batch_size=5)))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_transform_of_one_s_own_gets_pillow_images_and_is_not_touched(streaming):
    def own(image):
        assert isinstance(image, Image.Image)
        return pil_to_tensor(image)[:, :8, :8] / 100

    dataset = make_dataset(4)
    rows = transform_images(dataset.to_iterable_dataset() if streaming else dataset, own, normalize=False)
    assert rows.normalization is None
    (batch,) = batches(rows, batch_size=4)
    assert batch["pixel_values"].max() > 1


def test_views_of_pixels_depend_on_seed_epoch_and_index_only():
    rows = transform_images(make_dataset(), crop(), seed=1, normalize=False)
    straight = joined(batches(rows, batch_size=12), "pixels")
    torch.manual_seed(99)
    for workers in (1, 2):
        loader = DataLoader(rows, 5, collate_fn=ImageCollator(), num_workers=workers)
        assert torch.equal(joined(list(loader), "pixels"), straight)
    assert torch.equal(torch.stack([rows[index]["pixels"] for index in range(12)]), straight)
    assert torch.equal(torch.stack([row["pixels"] for row in rows.__getitems__([-1, 3])]), straight[[11, 3]])
    rows.set_epoch(1)
    assert not torch.equal(joined(batches(rows, batch_size=12), "pixels"), straight)


def test_a_size_of_one_s_own_is_resized_within_rounding():
    found = resize_transform((40, 24), image_spec(processor()))(picture())
    expected = pil_to_tensor(picture().resize((24, 40), 3)).double() / 255
    expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert in_steps(found - expected).max() <= 1.01
