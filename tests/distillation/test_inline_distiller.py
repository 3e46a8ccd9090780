"""A cleaned teacher is distilled as it runs: oracle of its targets, what is trained, what stays bit for bit."""

import copy
import re

import pytest
import torch
from adapters import attach
from distillers import changed, small_student, snapshot, train
from planted import planted_images, planted_vit
from runs import differing
from zoo import images, tiny, tiny_vit

from singer_hf import SingerConfig, SingerDistiller
from singer_hf.artifacts.outliers import outlier_ratio, token_norms
from singer_hf.distillation.adapter.cleaner import TeacherCleaner
from singer_hf.distillation.adapter.inline_distiller import InlineDistiller, adapter_digest
from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.distillation.artifact_metrics import artifact_metrics
from singer_hf.distillation.distiller import SingerOutput
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.distillation.trained_module import DistillerOutput
from singer_hf.training.figures import norm_maps
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.structure import view_vit

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

OWN = AdapterObjective(outlier_weight=0.5, info_weight=2.0)


def cleaned(layers=(1, 2), model=None, **config):
    return attach(tiny_vit() if model is None else model, layers_to_transform=list(layers), **config)


def make(teacher=None, objective=None, **settings):
    torch.manual_seed(0)
    teacher = cleaned() if teacher is None else teacher
    student = small_student(num_hidden_layers=4, image_size=view_vit(teacher).backbone.config.image_size)
    return InlineDistiller(student, teacher, objective, **settings).train()


def stream(peft_model, pixel_values):
    """Output of every block as a forward pass of the whole model hands it on, by hooks around the adapters."""
    seen, path = {}, next(name for name, module in peft_model.named_modules() if name.endswith(("layers", "layer")))
    blocks = peft_model.get_submodule(path)
    hooks = [
        block.register_forward_hook(
            lambda m, a, output, i=i: seen.update({i: output[0] if isinstance(output, tuple) else output})
        )
        for i, block in enumerate(blocks)
    ]
    with torch.no_grad():
        peft_model(pixel_values)
    for hook in hooks:
        hook.remove()
    return seen


def gated():
    """A teacher with planted artifacts and a gated adapter behind the block where they begin, which has seen some."""
    model = cleaned([1], planted_vit(), gate="outlier", init_scale=0.1)
    cleaner = TeacherCleaner(model, OWN).train()
    cleaner(planted_images())
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("family", ["vit", "dinov2_registers"])
@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [2], None])
def test_targets_are_the_hidden_states_of_a_forward_pass(family, layers):
    teacher = cleaned(model=tiny(family))
    distiller = make(teacher, teacher_layers=layers)
    targets, expected = distiller.flowing_features(images()), stream(teacher, images())
    assert distiller.teacher_layers == (layers or FeatureDistiller(small_student(), tiny(family)).teacher_layers)
    for block in distiller.teacher_layers:
        assert torch.equal(targets[block], expected[block])


def test_the_loss_is_that_of_plain_distillation_of_the_cleaned_teacher():
    """The cleaned teacher's stream, given to a FitNet distiller of the bare teacher as if it were its features."""
    distiller, plain = (
        make(target_norm="none"),
        FeatureDistiller(small_student(num_hidden_layers=4), tiny_vit(), target_norm="none"),
    )
    plain.student.load_state_dict(distiller.student.state_dict())
    plain.projectors.load_state_dict(distiller.projectors.state_dict())
    expected = plain.kd_loss(stream(distiller.teacher, images()), plain.student_extractor(images()))
    output = distiller(images())
    assert type(output) is DistillerOutput
    assert torch.equal(output.kd_loss, expected)
    assert torch.equal(output.loss, expected)


def test_a_frozen_adapter_stays_bit_for_bit_and_is_not_trained():
    distiller = make(gated())
    before, trained = snapshot(distiller), [n for n, p in distiller.named_parameters() if p.requires_grad]
    assert all(name.startswith(("student.", "projectors.")) for name in trained)
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        distiller(planted_images(seed=step)).loss.backward()
        optimizer.step()
    assert {name.partition(".")[0] for name in changed(distiller, before)} == {"student", "projectors", "target_norms"}
    assert all(p.grad is None for p in distiller.teacher.parameters())


def test_training_on_changes_the_adapter_and_its_gate_and_nothing_else_of_the_teacher():
    distiller = make(gated(), OWN)
    before = snapshot(distiller)
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        distiller(planted_images(seed=step)).loss.backward()
        optimizer.step()
    of_teacher = {name for name in changed(distiller, before) if name.startswith("teacher.")}
    parts = {re.search(r"layers\.(\d+)\.(singer_\w+)\.", name).groups() for name in of_teacher}
    assert parts == {("1", "singer_down"), ("1", "singer_up"), ("1", "singer_gate")}


def test_all_expected_parameters_are_trained():
    distiller = make(objective=OWN)
    before = snapshot(distiller)
    train(distiller)
    expected = {name for name, p in distiller.named_parameters() if "singer_" in name}
    assert len(expected) == 4
    assert {name for name in changed(distiller, before) if name.startswith("teacher.")} == expected


def test_l_kd_has_no_gradient_to_the_adapter():
    distiller = make(objective=OWN)
    distiller(images()).kd_loss.backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in distiller.student.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_the_adapter_s_losses_and_gradients_are_those_of_the_cleaner(training):
    teacher = gated()
    distiller = make(teacher, OWN).train(training)
    cleaner = TeacherCleaner(copy.deepcopy(teacher), OWN).train(training)
    output, expected = distiller(planted_images(seed=1)), cleaner(planted_images(seed=1))
    assert type(output) is SingerOutput
    assert list(output.components) == ["kd_loss", "outlier_loss", "info_loss"]
    assert torch.equal(output.outlier_loss, expected.outlier_loss)
    assert torch.equal(output.info_loss, expected.info_loss)
    torch.testing.assert_close(output.loss, output.kd_loss + expected.loss)
    (output.loss - output.kd_loss).backward()
    expected.loss.backward()
    for own, other in zip(distiller.teacher.parameters(), cleaner.teacher.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        if own.grad is not None:
            torch.testing.assert_close(own.grad, other.grad)
    assert differing(snapshot(distiller.teacher), snapshot(cleaner.teacher)) == set()


def test_gates_observe_in_training_only_and_only_when_trained_on():
    def observed(objective, training):
        distiller = make(gated(), objective).train(training)
        (layer,) = distiller.singer_layers.values()
        before = int(layer.singer_gate["default"].num_batches)
        distiller(planted_images(seed=2))
        return int(layer.singer_gate["default"].num_batches) - before

    assert [observed(OWN, True), observed(OWN, False), observed(None, True), observed(None, False)] == [1, 0, 0, 0]


def test_gates_observe_again_after_a_measurement_in_between():
    distiller = make(gated(), OWN)
    artifact_metrics(distiller, planted_images())
    (layer,) = distiller.singer_layers.values()
    before = int(layer.singer_gate["default"].num_batches)
    distiller(planted_images(seed=2))
    assert int(layer.singer_gate["default"].num_batches) == before + 1
    assert not any(module.training for module in distiller.teacher.modules())


def test_the_cleaner_adds_nothing_to_what_is_saved():
    assert not any("clean" in name for name in make(objective=OWN).state_dict())
    assert make(objective=OWN).state_dict().keys() == make().state_dict().keys()


def test_metrics_and_maps_show_the_stream_as_it_flows():
    distiller = make(teacher_layers=[0, 3])
    flowing, bare = stream(distiller.teacher, images()), stream(cleaned().unload(), images())

    def ratio(tokens):
        return float(torch.stack([outlier_ratio(token_norms(tokens[i][:, 1:])) for i in (0, 3)]).mean())

    metrics = artifact_metrics(distiller, images())
    assert metrics["refined_outlier_ratio"] == pytest.approx(ratio(flowing))
    assert metrics["teacher_outlier_ratio"] == pytest.approx(ratio(bare))
    assert metrics["refined_outlier_ratio"] != metrics["teacher_outlier_ratio"]
    maps = norm_maps(distiller, images())
    assert list(maps) == ["teacher", "refined teacher", "student"]
    torch.testing.assert_close(maps["refined teacher"].flatten(1), token_norms(flowing[3][:, 1:]))
    torch.testing.assert_close(maps["teacher"].flatten(1), token_norms(bare[3][:, 1:]))


def test_the_leakage_of_one_adapter_is_that_of_singer():
    """Behind the first adapter both see the same tokens before and after it."""
    settings = {"target_norm": "none"}
    inline = make(cleaned([1]), teacher_layers=[3], **settings)
    bypassed = SingerDistiller(small_student(), cleaned([1]), **settings)
    own, other = (artifact_metrics(distiller, images()) for distiller in (inline, bypassed))
    assert own["adapter_leakage"] == pytest.approx(other["adapter_leakage"])
    assert own["adapter_leakage"] > 0


def test_an_adapter_behind_the_last_block_refines_the_last_target():
    distiller = make(cleaned([3]))
    assert torch.equal(distiller.flowing_features(images())[3], stream(distiller.teacher, images())[3])
    assert "adapter_leakage" not in artifact_metrics(distiller, images())


def test_attached_hooks_give_the_same_losses():
    distiller = make(objective=OWN).eval()
    expected = distiller(images())
    with distiller.attached(), evaluation_mode(distiller):
        output = distiller(images())
    assert torch.equal(output.loss, expected.loss)


def refuse(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}")


def test_what_cannot_be_distilled_is_refused():
    with refuse("`teacher` must have SiNGER adapters, it has none; load the adapter onto it with"):
        make(tiny_vit())
    with refuse("`teacher_layers` must reach the first block with an adapter, 1, or nothing that is distilled is"):
        make(teacher_layers=[0])
    with refuse("`outlier_weight` must be greater than 0 to train the adapter, got 0.0; leave `train_adapter` out"):
        make(objective=AdapterObjective(outlier_weight=0.0))
    with refuse("`teacher` must have no SiNGER adapters for FeatureDistiller, it has some after blocks [1, 2]"):
        FeatureDistiller(small_student(), cleaned())


def test_a_teacher_has_one_adapter_and_it_is_active():
    two = cleaned()
    two.add_adapter("second", SingerConfig(r=2, layers_to_transform=[1], gate="none"))
    with refuse(
        "`teacher` must have one adapter, and it must be active, got ['default', 'second'] of which ['default']"
    ):
        make(two)
    two.delete_adapter("second")
    make(two)
    with two.disable_adapter(), refuse("`teacher` must have one adapter, and it must be active, got ['default'] of w"):
        make(two)


def test_the_digest_tells_adapters_apart():
    def digest(change=None, **config):
        teacher = cleaned(**config)
        layers = find_singer_layers(teacher)
        if change:
            with torch.no_grad():
                change(layers[1])
        return adapter_digest(layers)

    gate = {"gate": "outlier"}
    digests = [
        digest(),
        digest(layers=(1, 3)),
        digest(lambda layer: layer.singer_up["default"].weight[0, 0].add_(1e-6)),
        digest(**gate),
        digest(lambda layer: layer.singer_gate["default"].location.add_(1), **gate),
    ]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]
