"""What a teacher's artifacts do to its students: norms and components of teacher, refined teacher and students."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from singer_hf.cards.drawing import COLOURS, MAP_COLOURS, ratio_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: edge of a panel, space between the two panels of an image and between panels of others, margins.
_CELL, _GAP, _BREAK, _LEFT, _TOP, _RIGHT, _BOTTOM = 1.7, 0.07, 0.2, 0.3, 0.3, 0.72, 0.08
_LOWEST, _HIGHEST = 0.5, 4.0  # smallest range of the scale of norms over their median
_LONG = 3.0  # patches of the teacher that are marked, in medians


def student_maps(
    pictures: Tensor, tokens: Mapping[str, Tensor], grid: tuple[int, int], chosen: Sequence[int]
) -> "Figure":
    """Draws two rows per image: patch norms relative to the model's median, and components of the patch tokens.

    Norms have one scale. The components are those of :func:`aligned_components`. On the second copy of an image the
    patches are marked whose token in the teacher is longer than 3 medians.

    Args:
        pictures: Images (R, H, W, 3), values in [0, 1].
        tokens: Title of the column -> patch tokens (B, N, D): the teacher's, its refined ones, then those of students.
            Medians and components are taken of all B images.
        grid: (rows, columns) of the N patches.
        chosen: Indices of the R pictures among the B images.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    chosen = list(chosen)
    norms = {name: x.norm(dim=-1) / x.norm(dim=-1).median() for name, x in tokens.items()}
    components = aligned_components(tokens)
    highest = max(float(values[chosen].max()) for values in norms.values())
    scale = LogNorm(_LOWEST, max(highest, _HIGHEST), clip=True)
    long = next(iter(norms.values())) > _LONG
    width = _LEFT + (1 + len(tokens)) * (_CELL + _GAP) + _RIGHT
    height = _TOP + len(chosen) * (2 * _CELL + _GAP + _BREAK) - _BREAK + _BOTTOM
    figure = Figure(figsize=(width, height))

    def panel(row: int, column: int) -> "Axes":
        top = height - _TOP - (row // 2) * (2 * _CELL + _GAP + _BREAK) - (row % 2) * (_CELL + _GAP)
        left = _LEFT + column * (_CELL + _GAP)
        place = (left / width, (top - _CELL) / height, _CELL / width, _CELL / height)
        return figure.add_axes(place, xticks=[], yticks=[])

    for row, index in enumerate(chosen):
        for part, label in enumerate(("patch norms", "components")):
            axes = panel(2 * row + part, 0)
            axes.imshow(pictures[row].numpy(), aspect="auto")
            axes.set_ylabel(label, fontsize=9)
        _mark(axes, long[index].view(grid), pictures.shape[1:3])
        for column, name in enumerate(tokens, start=1):
            axes = panel(2 * row, column)
            shown = axes.imshow(norms[name][index].view(grid), norm=scale, cmap=MAP_COLOURS, aspect="auto")
            panel(2 * row + 1, column).imshow(components[name][index].view(*grid, 3), aspect="auto")
            if row == 0:
                axes.set_title(name, fontsize=10, pad=4)
    figure.axes[0].set_title("input", fontsize=10, pad=4)
    for row in range(len(chosen)):
        top = height - _TOP - row * (2 * _CELL + _GAP + _BREAK)
        place = ((width - _RIGHT + 0.03) / width, (top - _CELL) / height, 0.12 / width, _CELL / height)
        ratio_bar(figure, shown, place)
    return figure


def aligned_components(tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns three principal components of each model's patch tokens as red, green and blue in [0, 1], (B, N, 3).

    The teacher's and its refined tokens have one basis, fitted to the refined ones: long tokens would determine a
    basis of their own. Each student has a basis of its own, turned within its three components to the refined
    teacher's colours (orthogonal Procrustes), which changes no distance between tokens.

    Args:
        tokens: Name -> patch tokens (B, N, D): the teacher's, its refined ones, then those of students.
    """
    teacher, refined, *students = tokens
    scores = dict(zip((teacher, refined), _scores(tokens[refined], tokens[teacher], tokens[refined]), strict=True))
    for name in students:
        (own,) = _scores(tokens[name], tokens[name])
        left, _, right = torch.linalg.svd(_unit(own).T @ _unit(scores[refined]))
        scores[name] = own @ (left @ right)
    ends = torch.tensor([0.01, 0.99], dtype=torch.float64)
    ranges = {name: torch.quantile(scores[name], ends, dim=0) for name in (refined, *students)}
    ranges[teacher] = ranges[refined]
    return {name: _stretched(scores[name], *ranges[name]).view(*tokens[name].shape[:2], 3) for name in tokens}


def _stretched(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def _scores(fitted_to: Tensor, *tokens: Tensor) -> list[Tensor]:
    """The three leading principal components (B N, 3) of tokens (B, N, D) in the basis of others."""
    flat = fitted_to.flatten(0, 1).double()
    mean = flat.mean(0)
    _, _, basis = torch.linalg.svd((flat - mean).T @ (flat - mean), full_matrices=False)
    return [(x.flatten(0, 1).double() - mean) @ basis[:3].T for x in tokens]


def _unit(scores: Tensor) -> Tensor:
    return scores / scores.std(dim=0).clamp(min=1e-12)


def _mark(axes: "Axes", long: Tensor, size: Sequence[int]) -> None:
    """Frames the long patches (rows, columns) on an image of this height and width."""
    from matplotlib.patches import Rectangle

    height, width = size[0] / long.shape[0], size[1] / long.shape[1]
    for row, column in long.nonzero().tolist():
        corner = (column * width - 0.5, row * height - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=COLOURS[1], linewidth=1.2))
