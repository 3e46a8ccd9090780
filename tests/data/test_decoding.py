"""Pixels of stored images: those of Pillow, whichever decoder is used, and the same files are refused."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset
from noise_images import batches, crop, encoded, joined
from PIL import Image, ImageFile
from torchvision.transforms.v2.functional import pil_to_tensor

from singer_hf.data.columns import select_image_and_label
from singer_hf.data.decoding import decode_image, decode_pixels
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.transforms import to_rgb


def picture(height=47, width=61, mode="RGB"):
    """A smooth picture with some noise, so that sub-sampled colours differ from their neighbours."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    noisy = np.asarray(small).astype(int) + rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image=None, **options):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def oriented(number):
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = number
    return jpeg(exif=exif)


def other(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(data):
    return {"bytes": data, "path": None}


def by_pillow(data):
    return pil_to_tensor(to_rgb(decode_image(stored(data))))


def transparent():
    image = picture(mode="RGBA")
    image.putalpha(90)
    return image


DEEP = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16))
JPEGS = {
    "plain": jpeg(),
    "grey": jpeg(picture(mode="L")),
    "progressive": jpeg(progressive=True),
    "all colours": jpeg(subsampling=0, quality=100),
    "half the colours": jpeg(subsampling=1),
    "coarse": jpeg(quality=10),
    "restart markers": jpeg(restart_marker_rows=1),
    "not YCbCr": jpeg(keep_rgb=True),
    "one pixel": jpeg(picture(1, 1)),
    "one row": jpeg(picture(1, 90)),
    **{f"orientation {number}": oriented(number) for number in range(10)},
}
OTHERS = {
    "CMYK jpeg": jpeg(picture(mode="CMYK")),
    "png": other(picture(), "PNG"),
    "grey png": other(picture(mode="L"), "PNG"),
    "palette": other(picture(mode="P"), "PNG"),
    "transparent": other(transparent(), "PNG"),
    "16 bit": other(DEEP, "PNG"),
    "gif": other(picture(mode="P"), "GIF"),
    "webp": other(picture(), "WEBP"),
    "two jpegs in one": other(picture(), "MPO", save_all=True, append_images=[picture(20, 20)]),
}


@pytest.mark.parametrize("kind", [*JPEGS, *OTHERS])
def test_pixels_are_those_of_pillow_within_rounding(kind):
    data = (JPEGS | OTHERS)[kind]
    pixels, expected = decode_pixels(stored(data)), by_pillow(data)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, expected.shape)
    assert (pixels.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("files", "uses_pillow"), [(JPEGS, False), (OTHERS, True)])
def test_pillow_decodes_only_what_is_left(files, uses_pillow, monkeypatch):
    asked = []
    monkeypatch.setattr("singer_hf.data.decoding.decode_image", lambda e: asked.append(e) or decode_image(e))
    for data in files.values():
        decode_pixels(stored(data))
    assert len(asked) == uses_pillow * len(files)


def test_without_torchvision_s_decoder_pillow_decodes(monkeypatch):
    monkeypatch.setattr(torch.ops, "image", object())
    assert torch.equal(decode_pixels(stored(JPEGS["plain"])), by_pillow(JPEGS["plain"]))


def test_a_path_is_read_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEGS["orientation 6"])
    pixels = decode_pixels({"bytes": None, "path": str(tmp_path / "a.jpg")})
    assert torch.equal(pixels, decode_pixels(stored(JPEGS["orientation 6"])))
    with pytest.raises(FileNotFoundError, match="gone"):
        decode_pixels({"bytes": None, "path": str(tmp_path / "gone.jpg")})


def outcome(decode, data):
    try:
        return decode(data)
    except Exception as error:  # Pillow raises almost anything
        return type(error).__name__


@pytest.mark.parametrize("kind", ["plain", "progressive", "grey"])
def test_the_same_files_are_broken_as_for_pillow(kind):
    """Every file cut off at some place, and with one byte changed, is refused by both or gives the same pixels."""
    data, rng, broken = JPEGS[kind], np.random.default_rng(0), 0
    files = [data[:length] for length in range(2, len(data), 23)]
    for place, value in zip(rng.integers(2, len(data), 150), rng.integers(0, 256, 150), strict=True):
        files.append(data[:place] + bytes([value]) + data[place + 1 :])
    for file in files:
        found, expected = outcome(lambda item: decode_pixels(stored(item)), file), outcome(by_pillow, file)
        assert type(found) is type(expected)
        broken += isinstance(found, str)
        if isinstance(expected, str):
            assert found == expected
        else:
            assert (found.int() - expected.int()).abs().max() <= 1
    assert 20 < broken < len(files)


def test_truncated_files_are_read_where_pillow_is_told_to(monkeypatch):
    cut = JPEGS["plain"][:-200]
    with pytest.raises(OSError, match="truncated"):
        decode_pixels(stored(cut))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert torch.equal(decode_pixels(stored(cut)), by_pillow(cut))


def bomb():
    """A JPEG whose header promises 40,000 x 40,000 pixels."""
    data = jpeg(picture(16, 16, "L"))
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + (40_000).to_bytes(2) * 2 + data[place + 4 :]


def test_a_jpeg_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("singer_hf.data.decoding.torch", None)
    with pytest.raises(PIL.Image.DecompressionBombError):
        decode_pixels(stored(bomb()))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 47 * 61 - 1)
    with pytest.raises(PIL.Image.DecompressionBombWarning):
        decode_pixels(stored(JPEGS["plain"]))


def test_broken_jpegs_are_dropped_and_named_in_rows():
    files = [JPEGS["plain"], JPEGS["plain"][:300], JPEGS["grey"], encoded(picture())]
    rows = transform_images(select_image_and_label(Dataset.from_dict({"f": files}), image_column="f"), crop())
    assert rows[1]["error"].startswith("row 1 (OSError: ")
    assert joined(batches(rows, batch_size=4)).shape == (3, 3, 8, 8)
