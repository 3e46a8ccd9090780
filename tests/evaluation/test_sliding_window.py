"""Sliding windows over images of any size."""

import pytest
import torch
from labelled import tiny_model
from torch.nn import functional as F

from singer_hf.evaluation.features.frozen_features import FrozenFeatures
from singer_hf.evaluation.features.sliding_window import head_predictor, sliding_window
from singer_hf.evaluation.heads.linear_heads import SegmentationHead


def test_one_window_equals_the_whole_image():
    model, images = tiny_model(image_size=32, patch_size=8), torch.randn(2, 3, 32, 32)
    features_fn = FrozenFeatures(dense=True)
    head = SegmentationHead(features_fn(model, images), 5)
    predict = head_predictor(model, features_fn, head)
    expected = F.interpolate(predict(images), size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(sliding_window(predict, images, (32, 32), (21, 21)), expected)


def test_windows_cover_non_square_images_and_overlaps_are_averaged():
    seen = []

    def predict(tile):
        seen.append(tuple(tile.shape[-2:]))
        return torch.full((1, 2, 4, 4), float(len(seen)))

    logits = sliding_window(predict, torch.zeros(1, 3, 4, 10), (4, 4), (4, 4))
    assert seen == [(4, 4)] * 3
    # Windows start at columns 0, 4 and 6: the last two overlap on columns 6 and 7.
    assert logits[0, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2.5, 2.5, 3, 3]


def test_images_smaller_than_the_window_are_padded_and_cropped():
    logits = sliding_window(lambda tile: tile[:, :1], torch.ones(1, 3, 5, 20), (8, 8), (4, 4))
    assert logits.shape == (1, 1, 5, 20)
    assert torch.allclose(logits, torch.ones(()))


def test_a_stride_beyond_the_window_is_refused():
    with pytest.raises(ValueError, match=r"`stride` must be within 1 and the window \(4, 4\), got \(5, 4\)"):
        sliding_window(lambda tile: tile, torch.zeros(1, 3, 8, 8), (4, 4), (5, 4))
