"""The cleaner: both terms of an adapter inline, without a student."""

import pytest
import torch
from adapters import attach
from planted import planted_images
from runs import differing, snapshot
from torch import nn
from zoo import FAMILIES, images, tiny_vit

from singer_hf.distillation.adapter.cleaner import TeacherCleaner
from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.distillation.losses import info_loss, length_unit, outlier_loss
from singer_hf.tuner.layer import raw_features
from singer_hf.vit.features import capture_features

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

RELATIVE = AdapterObjective(outlier_weight=2.0, info_weight=3.0, outlier_loss="relative", info_share=1)


def cleaner(layers=(1,), objective=RELATIVE, **config):
    return TeacherCleaner(attach(tiny_vit(), layers_to_transform=list(layers), **config), objective)


def terms(model: nn.Module, block: int, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_outlier, L_info) of one block, with whatever adapters lie before it active."""
    layer = model.layers[block]
    with raw_features([adapter for index, adapter in model.layers.items() if index >= block]), torch.no_grad():
        raw = capture_features(model.teacher, pixel_values, [block, block + 1])
        layer.passthrough = False
        following = capture_features(model.teacher, pixel_values, [block + 1])[block + 1]
    refined = layer.refine(raw[block])
    outlier = outlier_loss(refined[:, 1:], 0.97, length_unit(raw[block][:, 1:]))
    return outlier, info_loss(following, raw[block + 1], 1)


def test_one_adapter_has_the_terms_of_its_block():
    model = cleaner()
    output = model(images())
    outlier, info = terms(model, 1, images())
    torch.testing.assert_close(output.outlier_loss, outlier)
    torch.testing.assert_close(output.info_loss, info)
    torch.testing.assert_close(output.loss, 2 * outlier + 3 * info)


def test_the_second_adapter_sees_what_the_first_one_leaves():
    model = cleaner((0, 1))
    output = model(images())
    first, second = (terms(model, block, images()) for block in (0, 1))
    torch.testing.assert_close(output.outlier_loss, (first[0] + second[0]) / 2)
    torch.testing.assert_close(output.info_loss, (first[1] + second[1]) / 2)


def test_a_gradient_reaches_the_adapter_of_its_own_block_only():
    model = cleaner((0, 2))
    outlier, _ = model._terms(2, images(), observe=False)
    outlier.backward()
    grads = {block: layer.singer_up["default"].weight.grad for block, layer in model.layers.items()}
    assert grads[0] is None
    assert grads[2].abs().max() > 0


def test_every_adapter_is_trained_and_nothing_else():
    model = cleaner((0, 3))
    before = snapshot(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images()).loss.backward()
    optimizer.step()
    path = "teacher.base_model.model.layers"
    assert differing(snapshot(model), before) == {
        f"{path}.{block}.singer_{kind}.default.weight" for block in (0, 3) for kind in ("down", "up")
    }


def test_after_the_last_block_the_features_themselves_are_compared():
    model = cleaner((3,))
    with raw_features(model.layers.values()), torch.no_grad():
        raw = capture_features(model.teacher, images(), [3])[3]
    expected = info_loss(model.layers[3].refine(raw), raw, 1)
    torch.testing.assert_close(model(images()).info_loss, expected)


def test_the_information_loss_can_be_left_out():
    objective = AdapterObjective(info_weight=0.0, outlier_loss="relative")
    output = cleaner(objective=objective)(images())
    assert output.info_loss == 0
    assert output.loss == output.outlier_loss


def test_gates_observe_in_training_only():
    model = cleaner(gate="outlier")
    gate = model.layers[1].singer_gate["default"]
    model.eval()(planted_images(2)[..., :32])
    assert gate.num_batches == 0
    model.train()(planted_images(2)[..., :32])
    assert gate.num_batches == 1
    assert not model.teacher.training


def test_the_captures_can_stay_attached():
    model = cleaner((0, 1))
    expected = model(images()).loss
    with model.attached():
        torch.testing.assert_close(model(images()).loss, expected)


def test_a_teacher_without_adapters_is_refused():
    message = "`teacher` must have SiNGER adapters, it has none; add them with `get_peft_model`"
    with pytest.raises(ValueError, match=message):
        TeacherCleaner(tiny_vit())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_cleaned(name):
    model = TeacherCleaner(attach(FAMILIES[name].build(), layers_to_transform=[1]), RELATIVE)
    model(images()).loss.backward()
    assert model.layers[1].singer_up["default"].weight.grad.abs().max() > 0
