"""Drawn scenes with a class, a segmentation mask and a depth map, for demos and tests without any download.

A scene shows up to three textured shapes in front of a plain or textured wall, seen through a little haze. Nearer
objects are larger, less hazy and cover farther ones. The class of the scene is the shape and texture of the nearest
object, so neither the colours nor the texture of the background determine it.
"""

import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

SHAPES = ("disc", "square", "triangle")
TEXTURES = ("striped", "checked", "speckled")
CLASS_NAMES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
SEGMENT_NAMES = ("background", *CLASS_NAMES)

_NEAREST, _FARTHEST_OBJECT, _WALL = (1.2, 1.9), 5.0, (6.0, 10.0)  # metres
_HAZE_METRES = 18.0  # distance over which contrast falls to 1/e


@dataclass(frozen=True)
class Scene:
    """One drawn scene.

    Attributes:
        image: RGB picture of ``size`` x ``size`` pixels.
        label: Index into ``CLASS_NAMES``: shape and texture of the nearest object.
        mask: Index into ``SEGMENT_NAMES`` per pixel, uint8 (H, W); 0 is background, class k is k + 1.
        depth: Distance per pixel in metres, float32 (H, W), between 1 and 10.
    """

    image: PILImage.Image
    label: int
    mask: np.ndarray
    depth: np.ndarray


def draw_scene(index: int, seed: int = 0, size: int = 64) -> Scene:
    """Draws scene ``index`` of the series ``seed``; the same arguments give the same scene.

    Args:
        index: Index of the scene, 0 or more.
        seed: Seed of the series, 0 or more; use another one for test data.
        size: Height and width in pixels, at least 16. The scene's layout does not depend on it.

    Raises:
        ValueError: If an argument is out of range.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"`index` and `seed` must be 0 or more, got {index!r} and {seed!r}")
    if size < 16:
        raise ValueError(f"`size` must be at least 16 pixels, got {size!r}")
    rng = np.random.default_rng((seed, index))
    pixels, depth = _background(rng, size)
    mask = np.zeros((size, size), dtype=np.uint8)
    distances = _distances(rng)
    for distance in distances:
        label = _paint_object(rng, pixels, mask, depth, distance, is_main=distance == distances[-1])
    return Scene(_develop(rng, pixels, depth), label, mask, depth)


def scene_dataset(num_images: int, seed: int = 0, size: int = 64) -> Dataset:
    """Draws scenes 0 to ``num_images`` - 1 of the series ``seed`` into an in-memory dataset.

    Columns: ``image`` (RGB), ``label`` (ClassLabel), ``annotation`` (greyscale image of ``SEGMENT_NAMES`` indices) and
    ``depth`` (image of mode ``F``: float32 metres, so ``np.asarray(row["depth"])`` needs no scale).

    Args:
        num_images: Number of scenes, at least 1.
        seed: Seed of the series.
        size: Height and width in pixels.

    Raises:
        ValueError: If an argument is out of range.
    """
    if num_images < 1:
        raise ValueError(f"`num_images` must be at least 1, got {num_images!r}")
    columns = {"image": [], "label": [], "annotation": [], "depth": []}
    for index in range(num_images):
        scene = draw_scene(index, seed, size)
        columns["image"].append(_encoded(scene.image, "PNG"))
        columns["label"].append(scene.label)
        columns["annotation"].append(_encoded(PILImage.fromarray(scene.mask), "PNG"))
        columns["depth"].append(_encoded(PILImage.fromarray(scene.depth), "TIFF"))
    features = Features(
        {"image": Image(), "label": ClassLabel(names=list(CLASS_NAMES)), "annotation": Image(), "depth": Image()}
    )
    return Dataset.from_dict(columns, features=features)


def _encoded(image: PILImage.Image, file_format: str) -> dict:
    """The image as `datasets` stores it; compressed fast rather than well, because demos draw scenes on the fly."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **({"compress_level": 1} if file_format == "PNG" else {}))
    return {"bytes": buffer.getvalue(), "path": None}


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as (x, y), each (H, W), from -1 to 1."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def _distances(rng: np.random.Generator) -> list[float]:
    """Distances of one to three objects in metres, far to near, the nearest half a metre before the others."""
    nearest = rng.uniform(*_NEAREST)
    others = rng.uniform(nearest + 0.5, _FARTHEST_OBJECT, size=rng.integers(0, 3))
    return [*sorted(others.tolist(), reverse=True), nearest]


def _background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A wall as colours (H, W, 3) from 0 to 1 and its depth (H, W) in metres.

    Every wall has a plain, mostly smooth part, as the places where real models have high-norm tokens.
    """
    x, y = _grid(size)
    light = rng.uniform(-0.15, 0.15) * x + rng.uniform(-0.15, 0.15) * y
    light -= rng.uniform(0.0, 0.2) * ((x - rng.uniform(-1, 1)) ** 2 + (y - rng.uniform(-1, 1)) ** 2)
    if rng.random() < 0.4:
        pattern = _texture(rng, rng.integers(len(TEXTURES)), x, y, period=rng.uniform(0.12, 0.4))
        light += rng.uniform(0.05, 0.22) * _envelope(rng, x, y) * (pattern - 0.5)
    colour = rng.uniform(0.3, 0.75) + rng.uniform(-0.1, 0.1, size=3)
    pixels = colour.astype(np.float32) + light[..., None]
    near, far = np.sort(rng.uniform(*_WALL, size=2))
    slope = np.clip(0.5 - 0.5 * (y * rng.uniform(0.5, 1.0) + x * rng.uniform(-0.3, 0.3)), 0, 1)
    return pixels, (near + (far - near) * slope).astype(np.float32)


def _envelope(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Strength (H, W) from 0 to 1 of a wall's texture: it fades out towards a random side."""
    angle = rng.uniform(0, 2 * math.pi)
    ramp = x * math.cos(angle) + y * math.sin(angle) + rng.uniform(0.0, 1.0)
    return np.clip(2 * ramp, 0, 1)


def _texture(rng: np.random.Generator, kind: int, u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """Texture ``kind`` (index into ``TEXTURES``) over the coordinates (u, v), (H, W) from 0 to 1."""
    angle, shift = rng.uniform(-0.35, 0.35), rng.uniform(0, 1)
    along = (u * math.cos(angle) + v * math.sin(angle)) / period + shift
    if TEXTURES[kind] == "striped":
        return _wave(along)
    across = (v * math.cos(angle) - u * math.sin(angle)) / period + shift
    if TEXTURES[kind] == "checked":
        return 0.5 + 2 * (_wave(along) - 0.5) * (_wave(across) - 0.5)
    values = rng.random((16, 16), dtype=np.float32)  # speckles: random cells of a third of a period
    return values[np.floor(3 * along).astype(np.int32) % 16, np.floor(3 * across).astype(np.int32) % 16]


def _wave(phase: np.ndarray) -> np.ndarray:
    """A square wave from 0 to 1 with period 1; its edges are soft to avoid aliasing at few pixels a period."""
    return np.clip(0.5 + 0.8 * np.sin((2 * math.pi) * phase), 0, 1)


def _outline(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (H, W) to the outline of a shape of about unit radius; negative inside."""
    if SHAPES[shape] == "disc":
        return np.sqrt(u * u + v * v) - 0.95
    if SHAPES[shape] == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.84
    return np.maximum(0.866 * np.abs(u) + 0.5 * v, -v) - 0.62


def _colour_pair(rng: np.random.Generator, texture: int) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a bright colour (3,), in which the channel with the texture's index tends to be the strongest.

    The colour is only a hint, which lets models learn the scenes in minutes.
    """
    dark, bright = rng.uniform(0.0, 0.35, size=3), rng.uniform(0.4, 0.9, size=3)
    hint = rng.uniform(0.0, 0.35)
    dark[texture] += hint
    bright[texture] += hint
    return dark.astype(np.float32), bright.astype(np.float32)


def _paint_object(
    rng: np.random.Generator,
    pixels: np.ndarray,
    mask: np.ndarray,
    depth: np.ndarray,
    distance: float,
    is_main: bool,
) -> int:
    """Draws one object over everything farther away, in place, and returns its class."""
    shape, texture = int(rng.integers(len(SHAPES))), int(rng.integers(len(TEXTURES)))
    label = shape * len(TEXTURES) + texture
    radius = 0.85 * rng.uniform(0.85, 1.15) / distance  # of half the picture: a pinhole camera
    reach = 0.9 - radius if is_main else 0.95
    (x, y), centre, angle = _grid(len(mask)), rng.uniform(-reach, reach, size=2), rng.uniform(-0.3, 0.3)
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u = (dx * math.cos(angle) + dy * math.sin(angle)) / radius
    v = (dy * math.cos(angle) - dx * math.sin(angle)) / radius
    own_depth = distance + 0.1 * rng.uniform(-1, 1) * u
    outline = _outline(shape, u, v) * (radius * len(mask) / 2)  # in pixels
    coverage = np.clip(0.5 - outline, 0, 1) * (own_depth < depth)
    pattern = _texture(rng, texture, u, v, period=rng.uniform(0.4, 0.5))
    dark, bright = _colour_pair(rng, texture)
    colours = dark + (bright - dark) * pattern[..., None]
    colours *= np.clip(-outline / (0.08 * radius * len(mask)) + 0.1, 0.1, 1)[..., None]  # a dark rim
    pixels += coverage[..., None] * (colours - pixels)
    inside = coverage > 0.5
    mask[inside] = label + 1
    depth[inside] = own_depth[inside]
    return label


def _develop(rng: np.random.Generator, pixels: np.ndarray, depth: np.ndarray) -> PILImage.Image:
    """Haze by distance, a little sensor noise, and rounding to an 8-bit RGB image."""
    clear = np.exp(depth / -_HAZE_METRES)[..., None]
    haze = rng.uniform(0.6, 0.8)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(0.6)
    values = 255 * (haze + (pixels - haze) * clear) + noise
    return PILImage.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
