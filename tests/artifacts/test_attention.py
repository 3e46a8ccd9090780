import torch
from zoo import images, tiny_vit

from singer_hf.artifacts.attention import AttentionCapture
from singer_hf.vit.structure import view_vit


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@torch.no_grad()
def test_hooks_and_tensors_last_as_long_as_the_context():
    model = tiny_vit()
    capture, mask = AttentionCapture(view_vit(model)), torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :3] = True
    assert hooks(model) == 0
    with capture:
        capture.check(images()[:1])
        model(images())
        share = capture.received(2, mask)
        assert hooks(model) > 0
    assert (hooks(model), capture._captured) == (0, {})
    assert share.shape == (1,)  # only the first image has receiving patches
    assert 0 < float(share) < 1
    assert capture.notes == {}


@torch.no_grad()
def test_the_class_token_s_attention_is_that_of_the_model():
    model, pixels = tiny_vit(), images()
    model.set_attn_implementation("eager")
    weights = model(pixels, output_attentions=True).attentions[2]  # (B, heads, 1+N, 1+N)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[1, [2, 5]] = True
    with AttentionCapture(view_vit(model)) as capture:
        capture.check(pixels[:1])
        model(pixels)
        share = capture.received_from_class(2, mask)
    row = weights[1].mean(0)[0, 1:]
    assert torch.allclose(share, (row[[2, 5]].sum() / row.sum())[None], atol=1e-6)
