"""Draws the accuracy of students by the share of planted artifacts, from the folders of `singer-hf compare`.

    python benchmarks/planted_shares.py --output docs/results/planted_shares.png \
        --comparison 2.5=outputs/compare/cifar10_objectives 8=outputs/compare/cifar10_objectives_0.12 \
        16=outputs/compare/cifar10_objectives_0.25

Every point is a student, the lines join the means over seeds. The students of the unplanted teacher, which are in the
first folder, stand at 0 %.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from singer_hf.baselines.method_table import display_title
from singer_hf.cards.drawing import COLOURS, legend_below, new_figure, small_text
from singer_hf.comparison.figures.axes import axis_title, keep_in_percent
from singer_hf.comparison.metric_table import get_metric

METRICS = ("probe_cls", "knn")
METHODS = {"fitnet": "normalised targets only", "singer": "", "neighbor": ""}  # with titles of their own
UNPLANTED = "unplanted_fitnet"
SPACE = 0.12  # between the methods at one share
DOT = {"marker": "o", "linestyle": "", "markersize": 4.5, "markeredgewidth": 0}


def parse() -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparison", nargs="+", required=True, metavar="SHARE=FOLDER", help="Share in %%: folder.")
    parser.add_argument("--output", type=Path, required=True, help="The PNG file.")
    return parser.parse_args()


def read_cells(folder: Path, method: str, metric: str) -> list[float]:
    """The values, in % for a share, of the finished cells of a method."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob(f"cells/{method}/seed*/result.json"))]
    return [get_metric(metric).scale * result["metrics"][metric] for result in results]


def draw(panel, folders: list[Path], metric: str) -> None:
    """Draws one metric: shares side by side, the unplanted teacher first."""
    unplanted = read_cells(folders[0], UNPLANTED, metric)
    for number, (method, title) in enumerate(METHODS.items()):
        cells, colour = [read_cells(folder, method, metric) for folder in folders], COLOURS[number]
        offset = SPACE * (number - (len(METHODS) - 1) / 2)
        for place, values in enumerate(cells, start=1):
            panel.plot([place + offset] * len(values), values, color=colour, alpha=0.6, **DOT)
        means = {place: mean(values) for place, values in enumerate([unplanted, *cells]) if values}
        panel.plot(*zip(*means.items(), strict=True), "-", color=colour, lw=1.4, label=title or display_title(method))
    panel.plot([0] * len(unplanted), unplanted, color="0.35", label="unplanted teacher", **DOT)
    panel.set(xlabel="patches with planted artifacts in %", ylabel=axis_title(get_metric(metric)))
    keep_in_percent(panel.yaxis, get_metric(metric))
    small_text(panel)


def main() -> None:
    """Reads the cells, draws and writes the figure."""
    settings = parse()
    shares = dict(entry.split("=", maxsplit=1) for entry in settings.comparison)
    figure = new_figure(7.6, 3.7)
    panels = figure.subplots(1, len(METRICS))
    for panel, metric in zip(panels, METRICS, strict=True):
        draw(panel, [Path(folder) for folder in shares.values()], metric)
        panel.set_xticks(range(len(shares) + 1), ["0", *shares])
    legend_below(figure, panels[0])
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.output, dpi=150)


if __name__ == "__main__":
    main()
