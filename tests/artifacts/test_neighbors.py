"""Means of ordinary neighbours on grids whose values are written out."""

import pytest
import torch

from singer_hf.artifacts.neighbors import inlier_neighbor_means


def means_of(values: list[list[float]], artifacts: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and where they are known on the grid of one image, whose tokens are (value, -value)."""
    rows, columns = len(values), len(values[0])
    column = torch.tensor(values).reshape(1, -1, 1)
    inliers = torch.ones(rows, columns, dtype=torch.bool)
    for place in artifacts:
        inliers[place] = False
    means, known = inlier_neighbor_means(torch.cat([column, -column], dim=-1), inliers.view(1, -1), (rows, columns))
    torch.testing.assert_close(means[..., 0], -means[..., 1])
    return means[0, :, 0].view(rows, columns), known.view(rows, columns)


def test_artifacts_do_not_enter_the_means_and_windows_end_at_the_border():
    means, known = means_of([[1, 2, 3], [4, 1000, 6], [7, 8, 9]], [(1, 1)])
    expected = [
        [(1 + 2 + 4) / 3, (1 + 2 + 3 + 4 + 6) / 5, (2 + 3 + 6) / 3],
        [(1 + 2 + 4 + 7 + 8) / 5, (1 + 2 + 3 + 4 + 6 + 7 + 8 + 9) / 8, (2 + 3 + 6 + 8 + 9) / 5],
        [(4 + 7 + 8) / 3, (4 + 6 + 7 + 8 + 9) / 5, (6 + 8 + 9) / 3],
    ]
    torch.testing.assert_close(means, torch.tensor(expected))
    assert known.all()


def test_rows_and_columns_are_not_mixed_up():
    means, _ = means_of([[1, 2, 3, 4], [5, 6, 7, 8]], [])
    torch.testing.assert_close(means[0], torch.tensor([3.5, 4.0, 5.0, 5.5]))


def test_the_window_is_larger_where_there_are_no_ordinary_neighbours():
    artifacts = [(row, column) for row in range(3) for column in range(4)]
    means, known = means_of([[100, 100, 100, 100]] * 3 + [[1, 2, 4, 9]], artifacts)
    # The first row sees the last one in windows of 7 x 7, the second one too; the third one has neighbours.
    expected = [[4, 4, 4, 4], [4, 4, 4, 4], [1.5, 7 / 3, 5, 6.5], [1.5, 7 / 3, 5, 6.5]]
    torch.testing.assert_close(means, torch.tensor(expected))
    assert known.all()


def test_beyond_the_larger_window_nothing_is_known():
    values = [[5.0, *[100.0] * 5]]
    means, known = means_of(values, [(0, column) for column in range(1, 6)])
    assert known.tolist() == [[True] * 4 + [False] * 2]
    torch.testing.assert_close(means, torch.tensor([[5.0, 5, 5, 5, 0, 0]]))
    means, known = means_of(values, [(0, column) for column in range(6)])
    assert not known.any()
    assert not means.any()


def test_a_grid_that_the_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="12 patch tokens do not fill a grid of 3 x 5"):
        inlier_neighbor_means(torch.zeros(1, 12, 2), torch.ones(1, 12, dtype=torch.bool), (3, 5))
