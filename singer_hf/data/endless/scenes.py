"""Drawing of endless scenes: a batch at once, on any device, from nothing but indices.

A scene shows one large textured shape, up to three smaller ones behind it and at most a very small one in front of it,
before a wall with a colour gradient, clouds and sometimes a texture. Its class is the shape and texture of the largest
object: 10 x 10 classes. Sizes, angles, the other objects and the background tell nothing about it, colours a little.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.data.endless.numbers import NumberStream, hash_pairs, series_keys
from singer_hf.data.endless.stencils import MAP_REACH, SHAPES, TEXTURES, shape_maps, texture_tiles

CLASS_NAMES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
MIN_SIZE = 16

_CHUNK = 128  # images drawn at once, which bounds the memory
_NOISE_PLACES = 2**20  # places of the numbers of the pixels' noise, above those of a scene
# Radii of the objects in half pictures and how often they are there, from back to front; the fourth is the largest.
_OBJECTS = (((0.15, 0.32), 0.6), ((0.15, 0.32), 0.6), ((0.15, 0.32), 0.6), ((0.45, 0.75), 1.0), ((0.08, 0.2), 0.5))
_MAIN = 3


@torch.no_grad()
def draw_endless_scenes(indices: Tensor, seed: int = 0, size: int = 224) -> tuple[Tensor, Tensor]:
    """Draws scenes of the series ``seed`` on the device of ``indices``.

    A scene depends on its index and on the seed alone, not on the batch, the order or the number of processes. Between
    kinds of devices values can differ by rounding, 1/255 at few pixels.

    Args:
        indices: Indices of the scenes, (B,), int64, from 0 to 2**32 - 1.
        seed: Seed of the series, from 0 to 2**32 - 1; use another one for test data.
        size: Height and width in pixels, at least 16.

    Returns:
        Images (B, 3, size, size) from 0 to 1 in steps of 1/255, float32, and classes (B,), int64, indices into
        ``CLASS_NAMES``.

    Raises:
        ValueError: If ``seed`` or ``size`` is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be from 0 to 2**32 - 1, got {seed!r}")
    if size < MIN_SIZE:
        raise ValueError(f"`size` must be at least {MIN_SIZE} pixels, got {size!r}")
    drawn = [_draw(series_keys(seed, chunk), size) for chunk in indices.split(_CHUNK)]
    return torch.cat([images for images, _ in drawn]), torch.cat([labels for _, labels in drawn])


def _draw(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    numbers = NumberStream(keys)
    line = (torch.arange(size, device=keys.device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    pixels, labels = _wall(numbers, x, y), keys
    for place, (radii, share) in enumerate(_OBJECTS):
        pixels, own = _paint_object(numbers, pixels, x, y, radii, share)
        labels = own if place == _MAIN else labels
    pixels = pixels + _noise(numbers, size)
    return (pixels.clamp(0, 1) * 255).round() / 255, labels


def _wall(numbers: NumberStream, x: Tensor, y: Tensor) -> Tensor:
    """A background (B, 3, H, W). Many walls are mostly plain: there real models have their high-norm tokens."""
    slope = numbers.uniform(-0.15, 0.15, 2, 3)
    pixels = numbers.uniform(0.15, 0.85, 3)[..., None, None] + _column(slope[:, 0]) * x + _column(slope[:, 1]) * y
    for cells, strength in ((3, 0.5), (9, 0.25)):
        clouds = numbers.uniform(-strength, strength, 3, cells, cells)
        clouds = F.interpolate(clouds, size=x.shape, mode="bicubic", align_corners=True)
        pixels = pixels + clouds * _column(numbers.uniform(0, 1, 1) ** 3)
    angle = _column(numbers.uniform(0, math.tau))
    u, v = _turned(x, y, angle)
    pattern = _pattern(numbers, numbers.below(len(TEXTURES)), u, v, (0.4, 1.2))
    fading = (u + _column(numbers.uniform(-0.8, 0.6))).clamp(0, 1)
    return pixels + (_column(numbers.uniform(-0.4, 0.4)) * fading * (pattern - 0.5)).unsqueeze(1)


def _paint_object(
    numbers: NumberStream, pixels: Tensor, x: Tensor, y: Tensor, radii: tuple[float, float], share: float
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) with one more object in a share of them, and the classes (B,) of the objects."""
    shape, texture = numbers.below(len(SHAPES)), numbers.below(len(TEXTURES))
    radius = _column(numbers.uniform(*radii))
    reach = 1 - 0.85 * radius
    centre = [reach * _column(numbers.uniform(-1, 1)) for _ in range(2)]
    u, v = _turned((x - centre[0]) / radius, (y - centre[1]) / radius, _column(numbers.uniform(0, math.tau)))
    distance = _look_up(shape_maps(x.device)[shape], u / MAP_REACH, v / MAP_REACH)
    coverage = (0.5 - distance * radius * (len(x) / 2)).clamp(0, 1) * (_column(numbers.uniform(0, 1)) < share)
    pattern = _pattern(numbers, texture, u, v, (0.42, 0.6)).unsqueeze(1)
    first, second = _colour_pair(numbers, shape, texture)
    light = _column(numbers.uniform(-0.25, 0.25)) * u + _column(numbers.uniform(-0.25, 0.25)) * v
    rim = (0.4 - distance / 0.08).clamp(0.4, 1)  # darker towards the outline
    colours = (first + (second - first) * pattern) * ((1 + light) * rim).unsqueeze(1)
    return torch.lerp(pixels, colours, coverage.unsqueeze(1)), shape * len(TEXTURES) + texture


def _colour_pair(numbers: NumberStream, shape: Tensor, texture: Tensor) -> tuple[Tensor, Tensor]:
    """A dark and a bright colour, each (B, 3, 1, 1), in random order.

    The dark colour tends to a hue of the shape (B,), the bright one to a hue of the texture (B,), in every scene to
    another degree. These hints get a training off its first plateau; they do not decide the class.
    """
    hint = numbers.uniform(0, 0.35, 1)
    dark = numbers.uniform(0.0, 0.45, 3) + hint * _hue(shape, len(SHAPES))
    bright = numbers.uniform(0.5, 1.0, 3) + hint * _hue(texture, len(TEXTURES))
    swapped = numbers.uniform(0, 1, 1) < 0.5
    return _column(torch.where(swapped, bright, dark)), _column(torch.where(swapped, dark, bright))


def _hue(kind: Tensor, count: int) -> Tensor:
    """Directions (B, 3) from grey to one of ``count`` hues, for kinds (B,)."""
    channels = torch.arange(3, device=kind.device) / 3
    return torch.cos(math.tau * (kind[:, None] / count + channels))


def _pattern(numbers: NumberStream, texture: Tensor, u: Tensor, v: Tensor, scales: tuple[float, float]) -> Tensor:
    """Textures (B, H, W) from 0 to 1 over coordinates (B, H, W); a scale is the number of tiles per unit."""
    scale = _column(numbers.uniform(*scales))
    u, v = u * scale + _column(numbers.uniform(0, 1)), v * scale + _column(numbers.uniform(0, 1))
    return _look_up(texture_tiles(u.device)[texture], 2 * (u - u.floor()) - 1, 2 * (v - v.floor()) - 1)


def _look_up(tables: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Values (B, H, W) of one table (B, S, S) per image at coordinates (B, H, W) from -1 to 1."""
    grid = torch.stack([u, v], dim=-1)
    return F.grid_sample(tables.unsqueeze(1), grid, padding_mode="border", align_corners=True).squeeze(1)


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _noise(numbers: NumberStream, size: int) -> Tensor:
    """Uniform noise (B, 3, size, size) of a random strength, up to 0.08 in the noisiest images."""
    places = torch.arange(_NOISE_PLACES, _NOISE_PLACES + size * size, device=numbers.keys.device)
    bits = hash_pairs(numbers.keys, places.reshape(size, size))
    values = torch.stack([(bits >> shift & 0xFF).float() for shift in (0, 8, 16)], dim=1) / 127.5 - 1
    return values * _column(0.08 * numbers.uniform(0, 1, 1) ** 2)


def _column(values: Tensor) -> Tensor:
    """Values (B, ...) with two dimensions more, for height and width."""
    return values[..., None, None]
