"""Figures of an evaluation: confusion matrix, predicted masks and depth maps, metric against model size.

matplotlib is imported inside the functions, so that the package works without it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from singer_hf.cards.drawing import new_figure
from singer_hf.evaluation.benchmarks.benchmark import Benchmark
from singer_hf.evaluation.results.files import merge_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from singer_hf.evaluation.benchmarks.run import BenchmarkRun
    from singer_hf.evaluation.results.result import Result

_DPI = 130
_NAMED_CLASSES = 20  # with more, names would be unreadable
_IGNORED_COLOUR = (0.0, 0.0, 0.0)


def save_figures(
    folder: Path,
    benchmark: Benchmark,
    class_names: Sequence[str],
    runs: Sequence["BenchmarkRun"],
    max_depth: float,
    others: Sequence["Result"] = (),
) -> None:
    """Saves the figures of all models on a benchmark.

    Args:
        folder: Folder for the png files.
        benchmark: The benchmark.
        class_names: Names of its classes.
        runs: Run of each model.
        max_depth: Depth at the end of the scale, in metres.
        others: Main metrics of other models, for the figure against model size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    main = [run.results[0] for run in runs]
    for item, run in zip(main, runs, strict=True):
        if run.confusion is not None:
            file = f"{benchmark.name}_confusion_{item.model.replace('/', '_')}.png"
            figure = confusion_figure(run.confusion, class_names, f"{benchmark.name}, {item.model}")
            figure.savefig(folder / file, dpi=_DPI)
    examples = runs[0].examples
    if examples is not None and examples.images:
        predictions = {item.model: run.examples.predictions for item, run in zip(main, runs, strict=True)}
        shown = (examples.images, examples.truths, predictions)
        is_depth = benchmark.task == "depth"
        figure = depth_figure(*shown, max_depth) if is_depth else segmentation_figure(*shown, class_names)
        figure.savefig(folder / f"{benchmark.name}_pictures.png", dpi=_DPI)
    points = [
        (item.model, item.num_parameters, item.value, item.low, item.high) for item in merge_results(others, main)
    ]
    size_figure(points, main[0].metric, benchmark.name).savefig(folder / f"{benchmark.name}_size.png", dpi=_DPI)


def confusion_figure(confusion: Tensor, class_names: Sequence[str], title: str = "") -> "Figure":
    """Draws a confusion matrix; each row shows the shares of the predictions for a true class.

    Args:
        confusion: Counts (C, C): rows are the true classes, columns the predicted ones.
        class_names: C names, shown for up to 20 classes.
        title: Title of the figure.
    """
    number = len(confusion)
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    named = number <= _NAMED_CLASSES
    side = 2.6 + 0.42 * number if named else 7.5
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if named:
        ticks = range(number)
        axes.set_xticks(ticks, class_names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(ticks, class_names, fontsize=8)
        for row in ticks:
            for column in ticks:
                if shares[row, column] >= 0.01:
                    colour = "black" if shares[row, column] > 0.6 else "white"
                    text = f"{100 * shares[row, column]:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    return figure


def segmentation_figure(
    images: Sequence[Tensor],
    truths: Sequence[Tensor],
    predictions: Mapping[str, Sequence[Tensor]],
    class_names: Sequence[str],
    ignore_index: int = 255,
) -> "Figure":
    """Draws a row per image: input, true mask, and the predicted mask of each model.

    Args:
        images: Pictures (h, w, 3), values in [0, 1].
        truths: Masks (H, W) of class indices.
        predictions: Name of the model -> masks (H, W).
        class_names: Names of the classes.
        ignore_index: Index of pixels without truth, black in the true mask.
    """
    from matplotlib.patches import Patch

    colours = class_colours(len(class_names))

    def paint(mask: Tensor) -> Tensor:
        known = mask.long()
        painted = colours[known.clamp(max=len(colours) - 1)]
        painted[known == ignore_index] = torch.tensor(_IGNORED_COLOUR)
        return painted

    figure = _rows(images, {"truth": truths, **predictions}, lambda axes, mask: axes.imshow(paint(mask).numpy()))
    masks = [mask for column in (truths, *predictions.values()) for mask in column]
    shown = sorted({int(value) for mask in masks for value in mask.unique()} - {ignore_index})
    patches = [Patch(color=colours[i].tolist(), label=class_names[i]) for i in shown]
    if any((mask == ignore_index).any() for mask in truths):
        patches.append(Patch(color=_IGNORED_COLOUR, label="ignored"))
    if len(patches) <= _NAMED_CLASSES + 1:
        widest = max(len(patch.get_label()) for patch in patches)
        columns = max(1, int(figure.get_figwidth() * 13 // (widest + 6)))
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def depth_figure(
    images: Sequence[Tensor], truths: Sequence[Tensor], predictions: Mapping[str, Sequence[Tensor]], max_depth: float
) -> "Figure":
    """Draws a row per image: input, true depth, and the predicted depth of each model, on one scale in metres.

    Args:
        images: Pictures (h, w, 3), values in [0, 1].
        truths: Depth maps (H, W) in metres; pixels without a measurement (0 or NaN) are white.
        predictions: Name of the model -> depth maps (H, W) in metres.
        max_depth: Depth at the end of the scale, in metres.
    """

    def show(axes: object, depth: Tensor) -> object:
        measured = torch.where((depth > 0) & depth.isfinite(), depth, torch.nan)
        return axes.imshow(measured.numpy(), vmin=0, vmax=max_depth, cmap="viridis_r")

    figure = _rows(images, {"truth": truths, **predictions}, show, extra_width=1.2)
    shown = figure.axes[1].images[0]
    figure.colorbar(shown, ax=figure.axes, shrink=0.8, aspect=30, pad=0.02, label="depth in metres")
    return figure


def size_figure(points: Sequence[tuple[str, float, float, float, float]], metric: str, title: str = "") -> "Figure":
    """Draws a metric against the number of parameters, with its 95 % intervals.

    Args:
        points: (name, parameters, value, low, high) of each model.
        metric: Label of the vertical axis.
        title: Title of the figure.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    for i, (name, size, value, low, high) in enumerate(points):
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(size / 1e6, value, yerr=error, fmt="os^Dvph*"[i % 8], capsize=4, label=name)
    sizes = [size / 1e6 for _, size, *_ in points]
    axes.set(xscale="log", xlim=(min(sizes) / 1.6, max(sizes) * 1.6), ylabel=metric, title=title)
    axes.set_xlabel("parameters in millions")
    ticks = sorted(set(sizes))
    axes.set_xticks(ticks, [f"{size:.3g}" for size in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def class_colours(number: int) -> Tensor:
    """Returns colours (number, 3) in [0, 1] that differ between neighbouring classes: hues by the golden ratio."""
    from matplotlib.colors import hsv_to_rgb

    indices = torch.arange(number, dtype=torch.double)
    hue = (indices * 0.618034) % 1.0
    saturation = 0.45 + 0.5 * ((indices % 3) / 2)
    value = 0.95 - 0.3 * ((indices // 3) % 2)
    return torch.from_numpy(hsv_to_rgb(torch.stack([hue, saturation, value], dim=1).numpy())).float()


def _rows(
    images: Sequence[Tensor], columns: Mapping[str, Sequence[Tensor]], show: object, extra_width: float = 0.2
) -> "Figure":
    aspect = images[0].shape[0] / images[0].shape[1]
    width, rows = 2.3, len(images)
    figure = new_figure(width * (len(columns) + 1) + extra_width, width * aspect * rows + 0.9)
    grid = figure.subplots(rows, len(columns) + 1, squeeze=False)
    for row in range(rows):
        grid[row][0].imshow(images[row].numpy())
        for axes, values in zip(grid[row][1:], columns.values(), strict=True):
            show(axes, values[row])
    for axes, title in zip(grid[0], ["input", *columns], strict=True):
        axes.set_title(title, fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    return figure
