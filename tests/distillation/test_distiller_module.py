"""The distiller as a module: copies, pickles, compilation, precision, hooks, summary, refused arguments."""

import copy
import pickle
import re

import pytest
import torch
import transformers as hf
from distillers import changed, make, small_student, snapshot, train
from torch import nn
from zoo import images, tiny, tiny_vit

from singer_hf import SingerDistiller
from singer_hf.baselines.singer import Singer

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def test_a_copy_is_independent():
    distiller = make()
    duplicate = copy.deepcopy(distiller)
    loss = distiller(images()).loss
    before = snapshot(distiller)
    assert torch.equal(train(duplicate)(images()).loss.isfinite(), torch.tensor(True))
    assert changed(distiller, before) == set()
    assert torch.equal(distiller(images()).loss, loss)
    assert duplicate._teacher_capture is not distiller._teacher_capture


def test_it_can_be_pickled():
    distiller = make()
    duplicate = pickle.loads(pickle.dumps(distiller))
    assert torch.equal(duplicate(images()).loss, distiller(images()).loss)


@pytest.mark.parametrize(
    "build",
    [
        make,
        lambda: SingerDistiller(small_student(), tiny_vit()),
        lambda: make(config={"gate": "outlier"}, target_norm="channel", outlier_loss="neighbors"),
        lambda: make(info_share=0.5),
    ],
    ids=["paper", "bare", "with statistics", "share of the images"],
)
def test_it_compiles_into_one_graph_with_the_same_gradients(build):
    plain = build()
    compiled = torch.compile(copy.deepcopy(plain), fullgraph=True, backend="eager")
    losses = []
    with compiled._orig_mod.attached():
        for model in (plain, compiled):
            torch.manual_seed(0)  # the images of L_info
            losses.append(model(images()).loss)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    theirs = dict(compiled._orig_mod.named_parameters())
    for name, parameter in plain.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=lambda text, name=name: f"{name} {text}")


def test_bf16_autocast_keeps_the_losses_in_float32_and_close():
    distiller = make()
    plain = distiller(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = distiller(images())
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, plain.loss, rtol=0.03, atol=0.01)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


def test_activation_checkpointing_of_the_student_gives_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        distiller = make()
        if checkpointed:
            distiller.activation_checkpointing_enable()
        distiller(images()).loss.backward()
        gradients.append({name: p.grad for name, p in distiller.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_teachers_wrapped_blocks_are_found_by_index():
    distiller = make((1, 3))
    assert sorted(distiller.singer_layers) == [1, 3]
    assert SingerDistiller(small_student(), tiny_vit()).singer_layers == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outlier_quantile": 1.0}, "`outlier_quantile` must lie in (0, 1), got 1.0"),
        ({"kd_weight": -1}, "`kd_weight` must be at least 0, got -1"),
        ({"info_loss": "x"}, "`info_loss` must be one of 'gram', 'reference', got 'x'"),
        (
            {"teacher_layers": [0, 1]},
            "`teacher_layers` must be left out for a teacher with adapters, which is distilled at their blocks "
            "[1, 3], got [0, 1]",
        ),
        (
            {"student": small_student(num_hidden_layers=1)},
            "the student has 1 blocks, fewer than the 2 distilled teacher blocks [1, 3]; distil fewer of them "
            "(`layers_to_transform`)",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**settings)


def hooks_on(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_after_training_the_student_has_no_hooks_and_can_be_copied():
    distiller = train(make(), steps=1)
    assert (hooks_on(distiller.student), hooks_on(distiller.teacher)) == (0, 0)
    twin = copy.deepcopy(distiller.student)
    assert torch.equal(twin(images()).last_hidden_state, distiller.student(images()).last_hidden_state)


def test_what_is_no_vision_model_is_refused_on_either_side():
    with pytest.raises(ValueError, match=r"^`student` must be a vision transformer or return feature maps"):
        make(student=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^Linear is not supported: "):
        SingerDistiller(small_student(), nn.Linear(2, 2))


def test_the_plan_says_what_is_paired_and_trained():
    torch.manual_seed(0)
    wide = hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    distiller = make(teacher=tiny("dinov2_registers"), student=wide, image_size=(32, 32))
    plan = Singer().summarize(distiller).splitlines()
    assert plan[:4] == [
        "method: SiNGER",
        "teacher: Dinov2WithRegistersModel, 4 blocks, width 32, 5 prefix tokens, images 32 x 32, patches 4 x 4",
        "student: ResNetModel, 3 blocks, images 32 x 32",
        "compared: the patches and 0 class token(s)",
    ]
    assert plan[4] == "  student block 1 -> teacher block 1: projector 8 -> 32, 8 x 8 map interpolated to 4 x 4"
    assert plan[5] == "  student block 2 -> teacher block 3: projector 16 -> 32"
    assert re.fullmatch(
        r"  adapter after block 1: r 4, effective null dimension .+ by null-space source: mlp \d+, .+", plan[6]
    )
    assert re.fullmatch(
        r"trained: student 0\.\d\d M, projectors 0\.00 M, adapters 0\.00 M; frozen: teacher 0\.\d\d M", plan[-1]
    )
