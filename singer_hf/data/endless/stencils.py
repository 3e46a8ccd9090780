"""What endless scenes are drawn from: outlines of shapes as distance maps, and textures as periodic tiles."""

import math
from functools import lru_cache

import torch
from torch import Tensor

SHAPES = ("disc", "square", "triangle", "ring", "cross", "star", "hexagon", "crescent", "flower", "bar")
TEXTURES = (
    *("plain", "striped", "checked", "speckled", "dotted"),
    *("ringed", "zigzag", "bricked", "gridded", "shaded"),
)
MAP_REACH = 1.5  # a distance map covers the square from -MAP_REACH to MAP_REACH; a shape has about unit radius

_RESOLUTION = 96
_PERIODS = 3  # of a texture in its tile


@lru_cache(maxsize=4)
def shape_maps(device: torch.device) -> Tensor:
    """Returns the signed distances (number of shapes, S, S) to the outlines, negative inside, float32."""
    line = torch.linspace(-MAP_REACH, MAP_REACH, _RESOLUTION)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([_outline(name, x, y) for name in SHAPES]).to(device)


@lru_cache(maxsize=4)
def texture_tiles(device: torch.device) -> Tensor:
    """Returns the textures (number of textures, S + 1, S + 1) from 0 to 1; the last row and column are the first."""
    line = torch.arange(_RESOLUTION) / _RESOLUTION
    y, x = torch.meshgrid(line, line, indexing="ij")
    tiles = torch.stack([_texture(name, x, y) for name in TEXTURES]).clamp(0, 1)
    return torch.nn.functional.pad(tiles[None], (0, 1, 0, 1), mode="circular")[0].to(device)


def _outline(name: str, x: Tensor, y: Tensor) -> Tensor:
    radius, angle = torch.hypot(x, y), torch.atan2(y, x)
    shapes = {
        "disc": lambda: radius - 0.9,
        "square": lambda: torch.maximum(x.abs(), y.abs()) - 0.82,
        "triangle": lambda: torch.maximum(0.866 * x.abs() + 0.5 * y, -y) - 0.6,
        "ring": lambda: (radius - 0.68).abs() - 0.27,
        "cross": lambda: torch.minimum(_box(x, y, 1.0, 0.34), _box(x, y, 0.34, 1.0)),
        "star": lambda: 0.65 * (radius - 0.48 - 0.6 * (2 * torch.remainder(angle * 5 / math.tau, 1) - 1).abs() ** 1.5),
        "hexagon": lambda: torch.maximum(0.866 * x.abs() + 0.5 * y.abs(), y.abs()) - 0.84,
        "crescent": lambda: torch.maximum(radius - 0.95, 0.72 - torch.hypot(x - 0.5, y)),
        "flower": lambda: 0.6 * (radius - 0.72 - 0.24 * torch.cos(6 * angle)),
        "bar": lambda: _box(x, y, 1.0, 0.4),
    }
    return shapes[name]()


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _texture(name: str, x: Tensor, y: Tensor) -> Tensor:
    """A texture over the unit square, periodic in both directions."""
    x, y = _PERIODS * x, _PERIODS * y
    centre = torch.hypot(torch.remainder(x, 1) - 0.5, torch.remainder(y, 1) - 0.5)
    textures = {
        "plain": lambda: torch.full_like(x, 0.5),
        "striped": lambda: _wave(x),
        "checked": lambda: 0.5 + 2 * (_wave(x) - 0.5) * (_wave(y) - 0.5),
        "speckled": lambda: _speckles(x, y),
        "dotted": lambda: 12 * (0.33 - centre) + 0.5,
        "ringed": lambda: _wave(3.2 * centre),
        "zigzag": lambda: _wave(y + 1.2 * (torch.remainder(x, 1) - 0.5).abs()),
        "bricked": lambda: _bricks(x / 1.5, 2 * y / 1.5),
        "gridded": lambda: torch.maximum(_lines(x), _lines(y)),
        "shaded": lambda: 0.5 + 0.5 * torch.cos(math.tau * x / _PERIODS),
    }
    return textures[name]()


def _wave(phase: Tensor) -> Tensor:
    """A square wave from 0 to 1 with soft edges."""
    return (0.5 + 1.2 * torch.sin(math.tau * phase)).clamp(0, 1)


def _lines(phase: Tensor) -> Tensor:
    """Thin bright lines, one per period."""
    return (12 * (0.12 - (torch.remainder(phase, 1) - 0.5).abs()) + 0.5).clamp(0, 1)


def _bricks(x: Tensor, y: Tensor) -> Tensor:
    """Rows of bright bricks, every second row shifted by half a brick, with dark joints."""
    return 1 - torch.maximum(_lines(y), _lines(x + 0.5 * torch.floor(y + 0.5)))


def _speckles(x: Tensor, y: Tensor) -> Tensor:
    """Random cells, five to a period."""
    cells = torch.rand((5 * _PERIODS, 5 * _PERIODS), generator=torch.Generator().manual_seed(0))
    return cells[(5 * y).long(), (5 * x).long()]
