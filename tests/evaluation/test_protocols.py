"""Protocols: published numbers and rates."""

import pytest

from singer_hf.evaluation.benchmarks.protocols import get_protocol


def test_protocols_hold_the_published_numbers():
    singer, dinov2 = get_protocol("singer"), get_protocol("dinov2")
    assert (singer.learning_rates, singer.classification.momentum, singer.norm) == ((0.5,), 0.0, False)
    assert (singer.classification.epochs, singer.dense.epochs, singer.image_size) == (150, 200, 224)
    assert len(dinov2.learning_rates) == 13
    assert dinov2.learning_rates[-1] == pytest.approx(0.1 * dinov2.classification.batch_size / 256)
    assert (len(dinov2.choices), max(blocks for _, blocks in dinov2.choices), dinov2.window) == (4, 4, (512, 512))
    assert (dinov2.knn_neighbours, dinov2.knn_temperature) == (20, 0.07)


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match=r"`protocol` must be one of \['dinov2', 'singer'\], got 'moco'"):
        get_protocol("moco")
