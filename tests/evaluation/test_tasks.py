"""Losses and predictions of the tasks."""

import math

import pytest
import torch
from torch.nn import functional as F

from singer_hf.evaluation.heads.tasks import DepthTask, SegmentationTask


def test_depth_is_the_mean_of_the_bins_at_the_temperature():
    logits = torch.zeros(1, 3, 1, 1)
    logits[0, 2] = 0.5
    expected = (5 * 1 + 10 * math.e) / (2 + math.e)
    assert DepthTask(10.0, temperature=0.5).predict(logits, torch.zeros(1, 1, 1)).item() == pytest.approx(
        expected, abs=1e-5
    )


def test_the_depth_loss_is_the_cross_entropy_to_the_nearest_bin_of_valid_pixels():
    logits = torch.randn(1, 11, 1, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[2.4, float("nan"), 0.0]]])
    expected = F.cross_entropy(logits[:, :, :, 0], torch.tensor([[2]]))
    assert torch.allclose(DepthTask(max_depth=10.0).loss(logits, labels), expected)


@pytest.mark.parametrize("task", [SegmentationTask(3), DepthTask()])
def test_a_batch_without_labels_that_count_gives_no_loss_and_no_gradient(task):
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    labels = torch.full((1, 4, 4), 255)
    loss = task.loss(logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
