"""Figures of an evaluation."""

import pytest
import torch

from singer_hf.evaluation.figures import (
    class_colours,
    confusion_figure,
    depth_figure,
    segmentation_figure,
    size_figure,
)


def test_the_confusion_matrix_names_classes_and_shows_shares(tmp_path):
    pytest.importorskip("matplotlib")
    figure = confusion_figure(torch.tensor([[3, 1], [0, 0]]), ["cat", "dog"], "pets")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert [text.get_text() for text in axes.texts] == ["75", "25"]
    figure.savefig(tmp_path / "confusion.png")
    confusion_figure(torch.eye(30), list(map(str, range(30)))).savefig(tmp_path / "large.png")


def test_masks_of_several_models_share_colours_and_the_legend_names_what_is_shown(tmp_path):
    pytest.importorskip("matplotlib")
    truth = torch.tensor([[0, 2], [255, 2]], dtype=torch.uint8)
    predictions = {"a": [torch.tensor([[0, 2], [2, 2]])], "b": [torch.zeros(2, 2, dtype=torch.long)]}
    figure = segmentation_figure([torch.rand(4, 4, 3)], [truth], predictions, ["sky", "road", "car"])
    assert [axes.get_title() for axes in figure.axes] == ["input", "truth", "a", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "car", "ignored"]
    painted = figure.axes[1].images[0].get_array()
    assert painted[0, 1].tolist() == pytest.approx(class_colours(3)[2].tolist(), abs=1e-6)
    assert painted[1, 0].tolist() == [0, 0, 0]
    figure.savefig(tmp_path / "masks.png")


def test_depth_maps_share_one_scale_and_leave_unmeasured_pixels_out(tmp_path):
    pytest.importorskip("matplotlib")
    truth = torch.tensor([[0.0, 2.0], [float("nan"), 4.0]])
    figure = depth_figure([torch.rand(4, 4, 3)], [truth], {"a": [torch.full((2, 2), 3.0)]}, max_depth=10.0)
    shown = [axes.images[0] for axes in figure.axes[1:3]]
    assert [image.get_clim() for image in shown] == [(0, 10.0), (0, 10.0)]
    assert torch.from_numpy(shown[0].get_array().filled(-1.0)).eq(-1.0).tolist() == [[True, False], [True, False]]
    figure.savefig(tmp_path / "depth.png")


def test_figures_against_size_show_every_model(tmp_path):
    pytest.importorskip("matplotlib")
    points = [("student", 5.7e6, 0.7, 0.68, 0.72), ("teacher", 3.0e8, 0.8, 0.79, 0.81)]
    figure = size_figure(points, "top1", "food101")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["student", "teacher"]
    assert axes.get_xscale() == "log"
    figure.savefig(tmp_path / "size.png")


def test_class_colours_differ():
    pytest.importorskip("matplotlib")
    assert len({tuple(colour) for colour in class_colours(150).tolist()}) == 150
