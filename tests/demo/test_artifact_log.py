"""The log of high-norm tokens during training: its values, its rows and its figure."""

import math

import pytest
import torch
from labelled import SIZE, tiny_model

from singer_hf.artifacts.outliers import outlier_ratio, sigma_outliers, token_norms
from singer_hf.demo.artifact_log import artifact_figure, artifact_rows, artifact_values, measure_artifacts
from singer_hf.vit.features import capture_features


def test_values_of_hand_made_norms():
    # Three blocks, two images, 101 patches: block 1 has two long patches in one image, block 2 one of them.
    norms = torch.ones(3, 2, 101)
    norms[1, 0, :2], norms[2, 0, 5] = 9.0, 5.0
    assert artifact_values(norms) == {
        "patches_last": 0.5,
        "ratio_last": pytest.approx(1, rel=1e-5),
        "patches_most": 1.0,
        "ratio_most": pytest.approx((9 + 1) / 2),
        "block_most": 1,
    }


def test_of_blocks_with_equally_many_the_last_one_counts():
    assert artifact_values(torch.ones(4, 2, 20))["block_most"] == 3


def test_all_images_are_measured_after_every_block():
    model = tiny_model().train()
    images = torch.randn(70, 3, SIZE, SIZE)
    values = measure_artifacts(model, images)
    assert model.training
    with torch.no_grad():
        features = capture_features(model.eval(), images, range(model.config.num_hidden_layers))
    norms = [token_norms(tokens[:, 1:]) for tokens in features.values()]
    patches = [sigma_outliers(block).item() for block in norms]
    assert values["patches_last"] == pytest.approx(patches[-1])
    assert values["patches_most"] == pytest.approx(max(patches))
    assert values["ratio_last"] == pytest.approx(outlier_ratio(norms[-1]).item(), rel=1e-5)
    assert patches[values["block_most"]] == max(patches)


def test_measuring_draws_no_random_numbers():
    model = tiny_model()
    state = torch.get_rng_state()
    measure_artifacts(model, torch.zeros(2, 3, SIZE, SIZE))
    assert torch.equal(torch.get_rng_state(), state)


def _rows(steps):
    values = {"patches_last": 0.5, "ratio_last": 1.5, "patches_most": 1.0, "ratio_most": 2.0, "block_most": 3}
    return [
        {"step": step, "image_views": 64 * step, "epoch": 0.1} | {f"artifacts_{name}": x for name, x in values.items()}
        for step in steps
    ]


def test_rows_are_in_order_once_and_without_other_entries():
    rows = artifact_rows([{"loss": 1.0, "step": 5}, *_rows([10, 20]), *_rows([20]), {"train_loss": 1.0, "step": 20}])
    assert [(row["step"], row["image_views"]) for row in rows] == [(10, 640), (20, 1280)]
    assert set(rows[0]) == {
        *("step", "image_views", "patches_last", "ratio_last", "patches_most", "ratio_most", "block_most")
    }


def test_the_figure_shows_both_blocks_over_the_views():
    pytest.importorskip("matplotlib")
    figure = artifact_figure(artifact_rows(_rows([10, 20])), "A title")
    assert [axis.get_ylabel() for axis in figure.axes] == ["patches above mean + 4σ per image", "p99/median"]
    for axis, values in zip(figure.axes, ((0.5, 1.0), (1.5, 2.0)), strict=True):
        assert [line.get_label() for line in axis.lines] == ["last block", "block with the most"]
        for line, value in zip(axis.lines, values, strict=True):
            assert list(line.get_ydata()) == [value, value]
            assert [math.isclose(x, y) for x, y in zip(line.get_xdata(), (640e-6, 1280e-6), strict=True)] == [True] * 2
