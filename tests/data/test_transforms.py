import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DINOv3ViTImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    Siglip2ImageProcessor,
    TimmWrapperImageProcessor,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from singer_hf.data.image_processors import image_spec
from singer_hf.data.transforms import PixelTransform, eval_transform, to_rgb, train_transform

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TIMM = {
    "input_size": (3, 32, 32), "interpolation": "bicubic", "mean": IMAGENET[0], "std": IMAGENET[1],
    "crop_pct": 0.9, "crop_mode": "center",
}  # fmt: skip


def make_processor(name):
    return {
        "vit": lambda: ViTImageProcessor(size={"height": 32, "width": 48}),
        "vit-pil": lambda: ViTImageProcessorPil(size={"height": 32, "width": 32}),
        "vit-without-rescaling": lambda: ViTImageProcessor(
            size={"height": 32, "width": 32}, do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3
        ),
        "vit-without-normalising": lambda: ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
        "clip": lambda: CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        "clip-without-crop": lambda: CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False),
        "bit": lambda: BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 32}),
        "dinov3": lambda: DINOv3ViTImageProcessor(size={"height": 32, "width": 32}),
        "efficientnet": lambda: EfficientNetImageProcessor(size={"height": 32, "width": 32}),
        "timm": lambda: TimmWrapperImageProcessor(pretrained_cfg=TIMM),
    }[name]()


SPECS = {
    "vit": ((32, 48), *HALF, "bilinear"),
    "vit-pil": ((32, 32), *HALF, "bilinear"),
    "vit-without-rescaling": ((32, 32), *HALF, "bilinear"),
    "vit-without-normalising": ((32, 32), (0.0,) * 3, (1.0,) * 3, "bilinear"),
    "clip": ((32, 32), *CLIP, "bicubic"),
    "clip-without-crop": ((32, 32), *CLIP, "bicubic"),
    "bit": ((32, 32), *CLIP, "bicubic"),
    "convnext": ((32, 32), *HALF, "bicubic"),
    "dinov3": ((32, 32), *IMAGENET, "bilinear"),
    "efficientnet": ((32, 32), (0.5,) * 3, (0.25,) * 3, "bicubic"),
    "timm": ((32, 32), *IMAGENET, "bicubic"),
}


@pytest.mark.parametrize("name", SPECS)
def test_spec_says_what_the_processor_does(name):
    size, mean, std, interpolation = SPECS[name]
    spec = image_spec(make_processor(name))
    assert spec.size == size
    assert spec.interpolation.value == interpolation
    assert spec.mean == pytest.approx(mean, abs=1e-6)
    assert spec.std == pytest.approx(std, abs=1e-6)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("build", [train_transform, eval_transform])
def test_a_plain_image_is_normalised_as_the_processor_says(name, build):
    size, mean, std, _ = SPECS[name]
    colour = (200, 100, 50)
    pixels = build(make_processor(name))(Image.new("RGB", (60, 50), colour))
    expected = (torch.tensor(colour) / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert type(pixels) is torch.Tensor
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected[:, None, None].expand(3, *size), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SPECS)
def test_transforms_survive_pickling(name):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for build in (train_transform, eval_transform):
        transform = build(make_processor(name))
        copy = pickle.loads(pickle.dumps(transform))
        torch.manual_seed(0)
        expected = transform(image)
        torch.manual_seed(0)
        assert torch.equal(copy(image), expected)


@pytest.mark.parametrize("name", sorted(set(SPECS) - {"clip-without-crop"}))
def test_eval_transform_equals_the_processor(name):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    processor = make_processor(name)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    # DINOv3's rescales before it resizes, so that nothing is rounded to 8 bits.
    tolerance = 1 / 255 / min(IMAGENET[1]) if name == "dinov3" else 1e-5
    torch.testing.assert_close(eval_transform(processor)(image), expected, rtol=0, atol=tolerance)


def test_processors_resize_and_crop_pixels_where_that_gives_the_same():
    found = {name for name in SPECS if isinstance(eval_transform(make_processor(name)), PixelTransform)}
    assert found == set(SPECS) - {"timm", "efficientnet"}


def deep(values, dtype):
    return Image.fromarray(np.full((5, 7), values, dtype))


def palette(transparency):
    image = Image.new("P", (7, 5), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    if transparency:
        image.info["transparency"] = 1
    return image


MODES = {
    "RGB": (lambda: Image.new("RGB", (7, 5), (10, 20, 30)), (10, 20, 30)),
    "L": (lambda: Image.new("L", (7, 5), 99), (99, 99, 99)),
    "1": (lambda: Image.new("1", (7, 5), 1), (255, 255, 255)),
    "LA half": (lambda: Image.new("LA", (7, 5), (0, 127)), (128, 128, 128)),
    "RGBA opaque": (lambda: Image.new("RGBA", (7, 5), (10, 20, 30, 255)), (10, 20, 30)),
    "RGBA clear": (lambda: Image.new("RGBA", (7, 5), (10, 20, 30, 0)), (255, 255, 255)),
    "CMYK": (lambda: Image.new("CMYK", (7, 5), (255, 0, 0, 0)), (0, 255, 255)),
    "YCbCr": (lambda: Image.new("YCbCr", (7, 5), (128, 128, 128)), (128, 128, 128)),
    "P": (lambda: palette(False), (200, 100, 50)),
    "P transparent": (lambda: palette(True), (255, 255, 255)),
    "I;16": (lambda: deep(32896, np.uint16), (128, 128, 128)),
    "I;16 white": (lambda: deep(65535, np.uint16), (255, 255, 255)),
    "I": (lambda: deep(32896, np.int32), (128, 128, 128)),
    "I 32 bit": (lambda: deep(2**30, np.int32), (255, 255, 255)),
    "F unit": (lambda: deep(0.5, np.float32), (128, 128, 128)),
    "F byte": (lambda: deep(128.0, np.float32), (128, 128, 128)),
    "F with nan": (lambda: deep(np.nan, np.float32), (0, 0, 0)),
    "1x1": (lambda: Image.new("RGB", (1, 1), (10, 20, 30)), (10, 20, 30)),
    "1x90": (lambda: Image.new("L", (1, 90), 7), (7, 7, 7)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    make, colour = MODES[mode]
    image = to_rgb(make())
    assert image.mode == "RGB"
    assert image.size == make().size
    assert image.getpixel((0, 0)) == colour


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("build", [train_transform, eval_transform])
def test_every_mode_goes_through_the_transforms(mode, build):
    make, colour = MODES[mode]
    pixels = build(make_processor("vit"))(make())
    assert pixels.shape == (3, 32, 48)
    np.testing.assert_allclose(pixels.mean((1, 2)), np.array(colour) / 127.5 - 1, atol=0.01)


def test_sixteen_bit_keeps_its_contrast():
    ramp = Image.fromarray(np.linspace(0, 65535, 256).round().astype(np.uint16)[None])
    assert np.asarray(to_rgb(ramp))[0, :, 0].tolist() == list(range(256))


def test_train_transform_crops_flips_and_jitters_only_when_told():
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3)))
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    steady = train_transform(make_processor("dinov3"), **whole, hflip=False)
    assert torch.equal(steady(image), steady(image))
    mirrored = train_transform(make_processor("dinov3"), **whole)
    views = [mirrored(image) for _ in range(20)]
    assert {bool(torch.equal(view, views[0].flip(-1))) for view in views} == {True, False}
    jitter = train_transform(make_processor("dinov3"), **whole, hflip=False, color_jitter=0.4)
    assert not torch.equal(jitter(image), jitter(image))
    crop = train_transform(make_processor("dinov3"), hflip=False)
    assert not torch.equal(crop(image), crop(image))


ERRORS = [
    (
        lambda: image_spec(object()),
        "`processor` must be an image processor with `image_mean` and `image_std`, got object without `image_mean`; "
        "load it with `AutoImageProcessor.from_pretrained`, or pass a transform of your own.",
    ),
    (
        lambda: image_spec(Siglip2ImageProcessor()),
        "`processor` must turn an image into `pixel_values` of shape (1, 3, H, W), got (1, 256, 768) from "
        "Siglip2ImageProcessor; models without a fixed grid are not supported.",
    ),
    (
        lambda: image_spec(ViTImageProcessor(do_resize=False)),
        "`processor` must resize or crop every image to one size, got ViTImageProcessor, which keeps the size of its "
        "input; set `do_resize=True` and a `size`.",
    ),
    (
        lambda: image_spec(MobileViTImageProcessor()),
        "`processor` must only resize, crop, rescale and normalise, got MobileViTImageProcessor, which turns the "
        "colour (200, 100, 50) into [0.196, 0.392, 0.784] instead of [0.784, 0.392, 0.196] (does it swap the "
        "channels?); pass a transform of your own.",
    ),
    (
        lambda: train_transform(ViTImageProcessor(), scale=(0.0, 1.0)),
        "`scale` must be a pair with 0 < low <= high <= 1, got (0.0, 1.0).",
    ),
    (
        lambda: train_transform(ViTImageProcessor(), scale=(0.5, 1.5)),
        "`scale` must be a pair with 0 < low <= high <= 1, got (0.5, 1.5).",
    ),
    (
        lambda: train_transform(ViTImageProcessor(), ratio=(2, 1)),
        "`ratio` must be a pair with 0 < low <= high, got (2, 1).",
    ),
    (
        lambda: train_transform(ViTImageProcessor(), color_jitter=-1),
        "`color_jitter` must be at least 0, got -1; 0 turns it off.",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ValueError, match=r"^`") as caught:
        call()
    assert str(caught.value) == message
