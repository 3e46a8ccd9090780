"""MixUp and CutMix: images and classes are mixed in the same proportion, reproducibly."""

import pytest
import torch

from singer_hf.demo.mixing import Mixing

K = 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(K, 3, 16, 16, generator=generator), torch.arange(K)


def kept(labels):
    """Share of the own class of every image, (K,); the classes of a batch are 0 to K - 1."""
    return labels.diagonal()


def other(labels):
    """Share of the class of the image before."""
    return labels[torch.arange(K), torch.arange(K) - 1]


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_classes_are_shares_of_two_images_that_sum_to_one(batch, alphas):
    for seed in range(10):
        torch.manual_seed(seed)
        _, labels = Mixing(*alphas, K)(*batch)
        assert torch.allclose(labels.sum(1), torch.ones(K))
        assert torch.allclose(kept(labels) + other(labels), torch.ones(K))


def test_mixup_adds_the_image_before_with_the_share_of_its_class(batch):
    images, _ = batch
    torch.manual_seed(0)
    mixed, labels = Mixing(0.8, 0, K)(*batch)
    share = kept(labels)[0]
    assert 0 < share < 1
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)


def test_cutmix_pastes_a_box_with_the_share_of_its_area(batch):
    images, _ = batch
    for seed in range(10):
        torch.manual_seed(seed)
        mixed, labels = Mixing(0, 1, K)(*batch)
        pasted = (mixed != images).any(1)
        assert torch.allclose(pasted.float().mean((1, 2)), 1 - kept(labels))
        assert torch.equal(torch.where(pasted[:, None], images.roll(1, 0), images), mixed)
        rows, columns = pasted[0].any(1).sum(), pasted[0].any(0).sum()
        assert rows * columns == pasted[0].sum()


def test_of_both_one_is_drawn_with_equal_probability(batch):
    mixing, images = Mixing(0.8, 1.0, K), batch[0]
    torch.manual_seed(0)
    mixed = [mixing(*batch)[0] for _ in range(200)]
    cut = [bool(((x == images) | (x == images.roll(1, 0))).all()) for x in mixed]
    assert 75 < sum(cut) < 125


def test_the_global_generator_decides(batch):
    mixing = Mixing(0.8, 1.0, K)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = [mixing(*batch)[0] for _ in range(5)]
    torch.set_rng_state(state)
    assert all(torch.equal(mixed, mixing(*batch)[0]) for mixed in first)


def test_without_mixing_the_batch_is_returned_as_it_is(batch):
    state = torch.get_rng_state()
    mixed, labels = Mixing(0, 0, K)(*batch)
    assert mixed is batch[0]
    assert labels is batch[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_negative_parameter_is_refused(value, place):
    alphas = [0.0, 0.0]
    alphas[place] = value
    name = ("mixup_alpha", "cutmix_alpha")[place]
    with pytest.raises(ValueError, match=f"`{name}` must be 0 or more, got {value!r}; 0 turns it off"):
        Mixing(*alphas, K)
