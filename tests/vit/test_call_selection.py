"""Recorded calls of some images: what has a row for each image is cut, whatever else is as long is kept."""

import pytest
import torch
import transformers as hf
import zoo
from torch import nn
from zoo import FAMILIES, IMAGE, every_family

from singer_hf.vit.features import BlockCall, FeatureCapture
from singer_hf.vit.structure import view_vit

SIZE = (IMAGE, IMAGE)
CHOSEN = torch.tensor([1, 0])
# Batches as long as the heads, the grid's side, the patches, and all tokens of the families.
LENGTHS = (2, 4, 16, 17, 18, 21)


def capture(model: nn.Module) -> FeatureCapture:
    return FeatureCapture(view_vit(model), (1, 2), calls=(2,))


@every_family
def test_the_replay_of_some_images_is_that_of_all(family):
    model = zoo.tiny(family)
    own = capture(model)
    batched, block = own.batched_values(SIZE), own.view.blocks[2]
    for length in LENGTHS:
        with torch.no_grad():
            features = own(zoo.images(batch=length))
            expected = features.calls[2].replay(block, features.outputs[1])[CHOSEN]
            chosen = features.select(CHOSEN, batched)
            replayed = chosen.calls[2].replay(block, chosen.outputs[1])
        torch.testing.assert_close(replayed, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(chosen.outputs[2], features.outputs[2][CHOSEN])
        assert chosen.calls[2].hidden_states.shape == (2, *features.outputs[1].shape[1:])


def test_some_family_has_arguments_that_are_as_long_as_a_batch():
    """Otherwise the test above would show nothing: rotary embeddings of 16 patches, two heads of a bias."""
    lengths = set()
    for family in FAMILIES:
        call = capture(zoo.tiny(family))(zoo.images()).calls[2]
        lengths |= {len(leaf) for leaf in call.leaves()[1:] if torch.is_tensor(leaf) and leaf.ndim}
    assert lengths & set(LENGTHS)


class Biased(hf.ViTModel):
    """A ViT whose blocks get a bias with a value for each image, and a tensor with one for each head."""

    rows_last = False

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.embeddings(pixel_values)
        bias = tokens.mean(dim=(1, 2))
        for layer in self.layers:
            tokens = layer(tokens, {"bias": bias[None] if self.rows_last else bias, "heads": torch.ones(2)})
        return tokens


class Adding(nn.Module):
    """A block that adds a recorded bias of each image."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attention, self.mlp, self.block = block.attention, block.mlp, block

    def forward(self, tokens: torch.Tensor, more: dict) -> torch.Tensor:
        return self.block(tokens) + more["bias"].reshape(-1, 1, 1) * more["heads"].sum()


def biased(rows_last: bool = False) -> FeatureCapture:
    model = Biased(zoo.tiny_vit().config, add_pooling_layer=False)
    model.layers, model.rows_last = nn.ModuleList(map(Adding, model.layers)), rows_last
    return capture(model.eval())


def test_nested_arguments_with_a_row_for_each_image_are_cut():
    own = biased()
    assert own.batched_values(SIZE) == {2: [True, True, False]}
    with torch.no_grad():
        features = own(zoo.images())
        full = features.calls[2].replay(own.view.blocks[2], features.outputs[1])
        chosen = features.select(torch.tensor([1]), own.batched_values(SIZE))
        part = chosen.calls[2].replay(own.view.blocks[2], chosen.outputs[1])
    torch.testing.assert_close(part, full[1:])


def test_arguments_whose_images_stand_elsewhere_are_refused():
    message = (
        r"gives its blocks a tensor of shape \(1, 1\) for one image and \(1, 2\) for two: its images cannot be told "
        r"apart; set `info_share=1`$"
    )
    with pytest.raises(ValueError, match=message):
        biased(rows_last=True).batched_values(SIZE)


def test_a_selected_call_leaves_the_recorded_one_alone():
    call = BlockCall(torch.arange(6.0).view(3, 2), (torch.arange(3), None), {"mask": torch.ones(3, 1), "scale": 2.0})
    part = call.select(torch.tensor([2]), [True, False, False, True, False])
    assert part.hidden_states.tolist() == [[4.0, 5.0]]
    assert part.args[0].tolist() == [0, 1, 2]
    assert (part.args[1], part.kwargs["scale"]) == (None, 2.0)
    assert part.kwargs["mask"].shape == (1, 1)
    assert call.kwargs["mask"].shape == (3, 1)
