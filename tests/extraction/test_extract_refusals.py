"""What `extract_features` refuses, word for word."""

import re

import PIL.Image
import pytest
import torch
import zoo
from datasets import DatasetDict
from labelled import colour_dataset
from noise_images import encoded, noise
from torch import nn
from transformers import ViTImageProcessor

from singer_hf import extract_features

PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32})
IMAGES = zoo.images()
ACCEPTED = "`images` must be PIL images, pixel values (B, 3, H, W), batches of them, a dataset, or a folder or Hub id"
CASES = {
    "output": (IMAGES, {"output": "maps"}, "`output` must be one of ('map', 'tokens'), got 'maps'"),
    "layer": (IMAGES, {"layers": 4}, "`layers` must lie in [-4, 3] for a model of 4 blocks, got 4"),
    "no layers": (
        IMAGES,
        {"layers": []},
        "`layers` must name at least one block, got []; leave it out for the last block",
    ),
    "a name as layers": (
        IMAGES,
        {"layers": "last"},
        "`layers` must be None, an integer or a list of integers, got 'last'",
    ),
    "half a layer": (IMAGES, {"layers": 1.5}, "`layers` must be None, an integer or a list of integers, got 1.5"),
    "dtype": (IMAGES, {"dtype": "bfloat16"}, "`dtype` must be one of ('float32', 'float16'), got 'bfloat16'"),
    "batch size": (IMAGES, {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
    "workers": (IMAGES, {"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
    "size": (
        noise(0),
        {"image_size": 45},
        "`image_size` must be a multiple of the model's patches of 8 x 8 pixels, got 45; the nearest size is (48, 48)",
    ),
    "size of an edge": (
        noise(0),
        {"image_size": (32, 2)},
        "`image_size` must be a multiple of the model's patches of 8 x 8 pixels, got (32, 2); the nearest size is "
        "(32, 8)",
    ),
    "three sizes": (
        noise(0),
        {"image_size": (32, 32, 3)},
        "`image_size` must be an edge or (height, width) in pixels, got (32, 32, 3)",
    ),
    "no size": (noise(0), {"image_size": 0}, "`image_size` must be an edge or (height, width) in pixels, got 0"),
    "size of pixel values": (
        IMAGES,
        {"image_size": 48},
        "`image_size` must be None for pixel values, got 48; resize them yourself",
    ),
    "a row of an image": (
        IMAGES[0, 0],
        {},
        "`images` must hold batches of pixel values (B, 3, H, W), got shape (32, 32)",
    ),
    "bytes": (
        IMAGES.byte(),
        {},
        "`images` must be normalised pixel values of a floating type, got torch.uint8; pass PIL images, which the "
        "image processor normalises",
    ),
    "none": ([], {}, "`images` must hold at least one image, got none"),
    "empty batch": (IMAGES[:0], {}, "`images` must hold at least one image, got none"),
    "empty dataset": (colour_dataset(0), {}, "`images` must hold at least one image, got a dataset without rows"),
    "paths": (
        ["a.png"],
        {},
        "`images` must hold PIL images or pixel values (B, 3, H, W), got str at position 0; yield batches of pixel "
        "values, or dicts with 'pixel_values'",
    ),
    "a number": (3, {}, f"{ACCEPTED}, got int"),
    "splits": (
        DatasetDict(train=colour_dataset(2)),
        {},
        f"{ACCEPTED}, got DatasetDict with ['train']; choose one split",
    ),
    "stream": (
        colour_dataset(2).to_iterable_dataset(),
        {},
        f"{ACCEPTED}, got a streamed dataset; load it without `streaming`",
    ),
    "no processor": (
        noise(0),
        {"processor": None},
        "`processor` must be an image processor, or the folder or Hub id of one, got None and none saved with the "
        "model ''; load one with `AutoImageProcessor.from_pretrained`, or pass pixel values",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_arguments_are_refused_word_for_word(case):
    images, options, message = CASES[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        extract_features(zoo.tiny("vit"), images, **{"processor": PROCESSOR, "progress": False, **options})
    assert str(caught.value) == message


def test_a_cut_image_is_named(tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded(noise(0, 64))[:200])
    images = [noise(0), PIL.Image.open(tmp_path / "cut.png")]
    with pytest.raises(ValueError, match=rf"^`images` must be readable, got {tmp_path}/cut\.png \(.*\); remove it$"):
        extract_features(zoo.tiny("vit"), images, processor=PROCESSOR, progress=False)


def test_a_model_without_a_final_norm_or_without_features_is_refused():
    with pytest.raises(ValueError, match="`norm` must be False for a model without a final norm, got True; leave it"):
        extract_features(zoo.tiny("beit"), IMAGES, norm=True)
    with pytest.raises(ValueError, match="`model` must return `hidden_states`, got Linear"):
        extract_features(nn.Linear(4, 4), IMAGES, progress=False)


def test_an_unknown_model_dataset_and_device_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`model` must be a module, a local folder .* got '.*gone'"):
        extract_features(tmp_path / "gone", IMAGES)
    with pytest.raises(FileNotFoundError, match=re.escape("`dataset_name` must be an existing folder or a Hub id")):
        extract_features(zoo.tiny("vit"), tmp_path / "gone", processor=PROCESSOR)
    with pytest.raises(ValueError, match="`device` must be a device of torch, got 'gpu'"):
        extract_features(zoo.tiny("vit"), IMAGES, device="gpu")
    assert torch.get_default_device() == torch.device("cpu")
