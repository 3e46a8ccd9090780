"""The generator of ViTKD: two convolutions over a grid, its masks and its loss."""

import pytest
import torch

from singer_hf.baselines.vitkd import MaskedGenerator, masked_loss, random_mask

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def point(weight):
    """A 3 x 3 kernel that sees one patch."""
    return torch.tensor([[[[0.0, 0.0, 0.0], [0.0, weight, 0.0], [0.0, 0.0, 0.0]]]])


def row(weights):
    """A 3 x 3 kernel that sees a patch and its neighbours to the left and right."""
    return torch.tensor([[[[0.0, 0.0, 0.0], weights, [0.0, 0.0, 0.0]]]])


@pytest.mark.parametrize(
    ("kernel", "token", "mask", "expected"),
    [
        (point(1.0), 5.0, [False, True, False], [3.0, 11.0, 7.0]),  # 2 x (1, 5, 3) + 1
        (point(1.0), -4.0, [False, False, True], [3.0, 1.0, 1.0]),  # 2 x relu(1, -2, -4) + 1
        (row([1.0, 1.0, 1.0]), 5.0, [False, True, False], [13.0, 19.0, 17.0]),  # 2 x (1+5, 1+5+3, 5+3) + 1
        (row([1.0, 0.0, 0.0]), 5.0, [True, False, False], [1.0, 11.0, 1.0]),  # 2 x relu(0, 5, -2) + 1
    ],
)
def test_the_generator_is_two_convolutions_over_a_grid_with_replaced_patches(kernel, token, mask, expected):
    generator = MaskedGenerator(1)
    generator.load_state_dict(
        {
            "mask_token": torch.tensor([token]),
            "conv_in.weight": kernel,
            "conv_in.bias": torch.zeros(1),
            "conv_out.weight": point(2.0),
            "conv_out.bias": torch.ones(1),
        }
    )
    tokens = torch.tensor([[[1.0], [-2.0], [3.0]]])
    assert generator(tokens, torch.tensor([mask]), (1, 3)).flatten().tolist() == expected


def test_the_loss_counts_masked_patches_only():
    generated = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    mask = torch.tensor([[True, False, True]])
    loss = masked_loss(generated, torch.zeros(1, 3, 2), mask)
    assert loss == ((1 + 4) / 2 + (25 + 36) / 2) / 2
    generated[0, 1] = 1e6
    assert masked_loss(generated, torch.zeros(1, 3, 2), mask) == loss


@pytest.mark.parametrize(("ratio", "number"), [(0.5, 8), (0.3, 5), (0.9, 14), (0.01, 1)])
def test_every_image_has_its_share_of_the_patches_masked(ratio, number):
    torch.manual_seed(0)
    mask = random_mask(500, 16, ratio)
    assert mask.sum(dim=1).unique().tolist() == [number]
    torch.testing.assert_close(mask.float().mean(dim=0), torch.full((16,), number / 16), atol=0.08, rtol=0)


def test_masks_come_from_the_random_state_that_a_checkpoint_restores():
    torch.manual_seed(5)
    first, second = random_mask(4, 16, 0.5), random_mask(4, 16, 0.5)
    torch.manual_seed(5)
    assert torch.equal(random_mask(4, 16, 0.5), first)
    assert not torch.equal(first, second)
