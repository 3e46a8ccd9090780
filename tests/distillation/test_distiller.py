"""The composite: what it computes, how often, what it trains, and what it leaves alone."""

from collections import Counter

import pytest
import torch
import transformers as hf
from distillers import changed, make, small_student, snapshot, train
from torch.nn import functional as F
from zoo import SIZES, images, tiny_vit

from singer_hf import SingerDistiller
from singer_hf.artifacts.gram import gram_matrix
from singer_hf.distillation.losses import outlier_loss
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def expected_features(distiller, block, pixel_values):
    """F, F̂, F_{l+1} and block_{l+1}(F̂) by running a bare copy of the teacher."""
    teacher = tiny_vit()
    layer = find_singer_layers(distiller.teacher)[block]
    down, up = layer.singer_down["default"].weight.T, layer.singer_up["default"].weight.T
    raw = capture_features(teacher, pixel_values, range(4))
    refined = torch.cat([raw[block][:, :1], raw[block][:, 1:] + raw[block][:, 1:] @ down @ up], dim=1)
    behind = (raw[block + 1], teacher.layers[block + 1](refined)) if block < 3 else (None, None)
    return raw[block], refined, *behind


@pytest.mark.parametrize("layers", [(1, 3), (0, 1), (2,), (3,)])
def test_components_are_the_methods_equations(layers):
    distiller, pixel_values = make(layers, student_layers=[1, 2][-len(layers) :], outlier_quantile=0.8), images()
    output = distiller(pixel_values)
    student = capture_features(distiller.student, pixel_values, range(3))
    kd, outlier, info = [], [], []
    for i, j in zip(layers, distiller.student_layers, strict=True):
        raw, refined, raw_next, refined_next = expected_features(distiller, i, pixel_values)
        kd.append((distiller.projectors[str(i)](student[j]) - refined).square().mean())
        outlier.append(outlier_loss(refined[:, 1:], 0.8))
        read, expected = (refined, raw) if i == 3 else (refined_next, raw_next)
        info.append((gram_matrix(read[:, 1:]) - gram_matrix(expected[:, 1:])).square().mean())
    number = len(layers)
    torch.testing.assert_close(output.kd_loss, sum(kd) / number)
    torch.testing.assert_close(output.outlier_loss, sum(outlier) / number)
    torch.testing.assert_close(output.info_loss, sum(info) / number)
    total = output.kd_loss + 0.01 * output.outlier_loss + output.info_loss
    torch.testing.assert_close(output.loss, total)


def test_the_released_codes_information_term():
    """Plain MSE over all tokens behind the first block; Gram of F̂ at the last against F̂ at the first."""
    distiller, pixel_values = make((1, 3), info_loss="reference"), images()
    _, refined_first, raw_next, refined_next = expected_features(distiller, 1, pixel_values)
    _, refined_last, _, _ = expected_features(distiller, 3, pixel_values)
    first = (refined_next - raw_next).square().mean()
    last = (gram_matrix(refined_last[:, 1:]) - gram_matrix(refined_first[:, 1:])).square().mean()
    torch.testing.assert_close(distiller(pixel_values).info_loss, (first + last) / 2)


def test_the_released_codes_information_term_with_the_last_block_alone():
    """The released code crashes here; there is no earlier block, so the raw features stand in."""
    distiller, pixel_values = make((3,), info_loss="reference"), images()
    raw, refined, _, _ = expected_features(distiller, 3, pixel_values)
    expected = (gram_matrix(refined[:, 1:]) - gram_matrix(raw[:, 1:])).square().mean()
    torch.testing.assert_close(distiller(pixel_values).info_loss, expected)


def test_weights_multiply_their_components():
    output = make(kd_weight=2.0, outlier_weight=3.0, info_weight=5.0)(images())
    torch.testing.assert_close(output.loss, 2 * output.kd_loss + 3 * output.outlier_loss + 5 * output.info_loss)


@pytest.mark.parametrize(
    ("layers", "info_weight", "expected"),
    [
        ((1, 3), 1.0, [1, 1, 2, 1]),
        ((0, 1), 1.0, [1, 2, 2, 0]),  # nothing behind block 2 is needed
        ((1,), 1.0, [1, 1, 2, 0]),
        ((3,), 1.0, [1, 1, 1, 1]),
        ((1, 3), 0.0, [1, 1, 1, 1]),  # no information loss: no replay
    ],
)
def test_a_step_is_one_teacher_pass_and_one_extra_call_per_intermediate_block(layers, info_weight, expected):
    distiller = make(layers, info_weight=info_weight, student_layers=[1, 2][-len(layers) :])
    view, calls = view_vit(distiller.teacher), Counter()
    count = {"norm": view.final_norm, "patches": view.patch_embedding, **dict(enumerate(view.blocks))}
    for name, module in count.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    distiller(images()).loss.backward()
    assert [calls[i] for i in range(4)] == expected
    assert (calls["patches"], calls["norm"]) == (1, 0)


def test_the_teachers_own_stream_is_that_of_the_bare_teacher():
    """Block 2 of the main pass reads the raw features of block 1 although that block carries an adapter."""
    distiller, pixel_values = make(), images()
    raw = distiller.teacher_features(pixel_values).outputs
    expected = capture_features(tiny_vit(), pixel_values, [1, 2, 3])
    assert sorted(raw) == [1, 2, 3]
    assert all(torch.equal(raw[i], expected[i]) for i in raw)


def test_after_training_all_that_should_have_changed_has_and_no_teacher_tensor():
    distiller = make()
    student, projectors, teacher = (
        snapshot(part) for part in (distiller.student, distiller.projectors, distiller.teacher)
    )
    train(distiller)
    assert set(student) - changed(distiller.student, student) == {"layernorm.weight", "layernorm.bias"}
    assert changed(distiller.projectors, projectors) == set(projectors)
    adapters = {name for name in teacher if "singer_" in name}
    assert len(adapters) == 4
    assert changed(distiller.teacher, teacher) == adapters


def test_a_dinov2_students_mask_token_is_the_other_exception():
    config = hf.Dinov2WithRegistersConfig(**{**SIZES, "hidden_size": 16, "num_hidden_layers": 2})
    distiller = make(student=hf.Dinov2WithRegistersModel(config))
    before = snapshot(distiller.student)
    train(distiller)
    untouched = {"embeddings.mask_token", "layernorm.weight", "layernorm.bias"}
    assert set(before) - changed(distiller.student, before) == untouched


def test_a_given_pairing_below_the_last_block_leaves_the_later_blocks_untrained():
    distiller = make(student_layers=[0, 1])
    before = snapshot(distiller.student)
    train(distiller)
    assert not any(name.startswith("layers.2.") for name in changed(distiller.student, before))


def test_no_gradient_reaches_a_teacher_weight():
    distiller = make()
    distiller(images()).loss.backward()
    for name, parameter in distiller.teacher.named_parameters():
        assert parameter.requires_grad == ("singer_" in name), name
        assert (parameter.grad is not None) == ("singer_" in name), name


def test_kd_reaches_the_adapter_unless_it_is_detached():
    for detach_refined in (False, True):
        distiller = make(detach_refined=detach_refined, outlier_weight=0.0, info_weight=0.0)
        distiller(images()).loss.backward()
        gradients = [p.grad for name, p in distiller.teacher.named_parameters() if "singer_" in name]
        assert all(g is None or not g.any() for g in gradients) == detach_refined
        assert all(p.grad is not None for p in distiller.projectors.parameters())


def test_detaching_leaves_the_other_losses_gradient():
    distiller = make(detach_refined=True)
    distiller(images()).loss.backward()
    assert all(p.grad.any() for name, p in distiller.teacher.named_parameters() if "singer_" in name)


def test_without_the_information_weight_the_term_is_zero():
    assert make(info_weight=0.0)(images()).info_loss.item() == 0


def test_the_teacher_stays_in_eval_mode():
    distiller = make()
    assert distiller.student.training
    assert not any(module.training for module in distiller.teacher.modules())
    assert torch.equal(distiller(images()).outlier_loss, distiller(images()).outlier_loss)  # its dropout is 0.5
    assert not distiller.eval().student.training


def test_a_bare_teacher_is_multi_layer_feature_distillation():
    student, pixel_values = small_student(), images()
    distiller = SingerDistiller(student, tiny_vit(), teacher_layers=[1, -1], student_layers=[0, 2], target_norm="none")
    output = distiller(pixel_values)
    teacher_tokens = capture_features(tiny_vit(), pixel_values, [1, 3])
    tokens = capture_features(student, pixel_values, [0, 2])
    expected = sum(F.mse_loss(distiller.projectors[str(i)](tokens[j]), teacher_tokens[i]) for i, j in ((1, 0), (3, 2)))
    torch.testing.assert_close(output.kd_loss, expected / 2)
    assert (output.outlier_loss.item(), output.info_loss.item()) == (0, 0)
    assert output.loss.item() == output.kd_loss.item()
    assert not any(p.requires_grad for p in distiller.teacher.parameters())


def test_a_bare_teachers_blocks_behind_the_last_distilled_one_are_not_run():
    distiller = SingerDistiller(small_student(), tiny_vit(), teacher_layers=[1], student_layers=[2])
    calls = []
    distiller.teacher.layers[2].register_forward_pre_hook(lambda *_: calls.append(1))
    distiller(images())
    assert calls == []


def test_the_default_blocks_are_those_at_three_quarters_and_at_the_end():
    distiller = SingerDistiller(small_student(), tiny_vit())
    assert (distiller.teacher_layers, distiller.student_layers) == ([2, 3], [1, 2])
