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
