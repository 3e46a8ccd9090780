"""Teachers in half precision or compiled: what is trained and compared stays in float32, the result stays the same."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from distillers import make
from runs import StopAt, adapter, differing, make_resumable, make_trainer, snapshot
from zoo import images, tiny, tiny_vit

from singer_hf.baselines.method_table import make_method
from singer_hf.distillation.adapter.cleaner import TeacherCleaner
from singer_hf.distillation.adapter.objective import AdapterObjective

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
GATED = {"peft_config": adapter(gate="outlier")}


@HALF
@pytest.mark.parametrize("bare", [True, False])
def test_a_half_precision_teacher_is_never_trained_or_averaged(tmp_path, dtype, bare):
    teacher = tiny_vit().to(dtype)
    before = snapshot(teacher)
    trainer = make_trainer(tmp_path, teacher_model=teacher, bare=bare, ema_decay=0.9, max_steps=2)
    trainer.train()
    trained = {id(p): p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    layers = trainer.distiller.singer_layers.values()
    adapters = {id(p) for layer in layers for p in layer.adapter_parameters()}
    teachers = {id(p) for p in trainer.distiller.teacher.parameters()}
    assert trained.keys() & teachers == adapters
    assert bool(adapters) != bare
    assert {p.dtype for p in trainer.emas[""].average.parameters()} == {torch.float32}
    assert len(list(trainer.emas[""].average.parameters())) == len(list(trainer.distiller.student.parameters()))
    after = {name.replace("base_layer.", ""): value for name, value in snapshot(teacher).items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


@HALF
@pytest.mark.parametrize("outlier_loss", ["absolute", "neighbors"])
def test_targets_and_losses_are_close_to_those_of_the_float32_teacher(dtype, outlier_loss):
    own = make(teacher=tiny_vit(), outlier_loss=outlier_loss, target_norm="channel_token")
    half = make(teacher=tiny_vit().to(dtype), outlier_loss=outlier_loss, target_norm="channel_token")
    half.student.load_state_dict(own.student.state_dict())
    half.projectors.load_state_dict(own.projectors.state_dict())
    for block, layer in half.singer_layers.items():
        layer.singer_down.load_state_dict(own.singer_layers[block].singer_down.state_dict())
        layer.singer_up.load_state_dict(own.singer_layers[block].singer_up.state_dict())
    refined = half.refine(half.teacher_features(images()).outputs)
    assert {tokens.dtype for tokens in refined.values()} == {torch.float32}
    expected, output = own(images()), half(images())
    for name, value in output.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.1, atol=2e-3)
    output.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in half.parameters() if p.grad is not None)


@HALF
def test_small_refinements_are_not_rounded_away(dtype):
    """Added in half precision, a thousandth of a token would be lost or doubled."""
    half = make(teacher=tiny_vit().to(dtype))
    raw = half.teacher_features(images()).outputs
    for layer in half.singer_layers.values():
        torch.nn.init.constant_(layer.singer_up["default"].weight, 1e-5)
    refined = half.refine(raw)
    assert (refined[1] != raw[1].float())[:, 1:].float().mean() > 0.9


@HALF
def test_an_adapter_alone_is_trained_on_a_half_precision_teacher(dtype):
    distiller = make(teacher=tiny_vit().to(dtype))
    cleaner = TeacherCleaner(distiller.teacher, AdapterObjective(info_share=0.5)).train()
    output = cleaner(images())
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad.isfinite().all() for layer in cleaner.layers.values() for p in layer.adapter_parameters())


@pytest.mark.parametrize("name", ["clip_norm", "neighbor", "local_outlier_factor", "relational"])
def test_other_methods_take_a_half_precision_teacher(tmp_path, name):
    method = make_method(name, {})
    teacher = method.prepare(tiny_vit().to(torch.bfloat16))
    trainer = make_trainer(tmp_path, teacher_model=teacher, bare=True, method=method, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_a_run_resumes_bit_for_bit_and_only_with_the_same_type(tmp_path):
    def run(folder, dtype=torch.bfloat16, **options):
        return make_resumable(folder, max_steps=4, teacher_model=tiny_vit().to(dtype), **GATED, **options)

    straight = run(tmp_path / "straight")
    straight.train()
    run(tmp_path / "stopped", callbacks=[StopAt(2)]).train()
    checkpoint = str(tmp_path / "stopped" / "checkpoint-2")
    with pytest.raises(ValueError, match=r"made with other settings: teacher dtype 'bfloat16' -> 'float32', teacher"):
        run(tmp_path / "other", torch.float32).train(resume_from_checkpoint=checkpoint)
    resumed = run(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=checkpoint)
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()


@pytest.mark.parametrize(("dtype", "mentioned"), [(torch.bfloat16, True), (torch.float32, False)])
def test_the_card_names_a_teacher_in_half_precision(tmp_path, dtype, mentioned):
    trainer = make_trainer(tmp_path, teacher_model=tiny_vit().to(dtype), max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    text = (Path(tmp_path) / "README.md").read_text()
    assert bool(re.search(r"teacher dtype.*bfloat16", text)) == mentioned


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def test_a_compiled_teacher_gives_the_run_of_the_plain_one(tmp_path, monkeypatch, backend):
    """Losses, logs of eight images out of four and evaluation outside of the training included."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    runs = []
    for compiled in (False, True):
        trainer = make_trainer(tmp_path / str(compiled), compile_teacher=compiled, max_steps=3, **GATED)
        trainer.train()
        runs.append([row for row in trainer.state.log_history if "loss" in row])
        last = trainer.distiller.eval()(images(40, 40)[..., :32, :32])
        runs[-1].append(dict(last.items()))
    for plain, row in zip(*runs, strict=True):
        for name in ("loss", "kd_loss", "outlier_loss", "info_loss", "teacher_outlier_ratio"):
            assert float(row.get(name, 0)) == pytest.approx(float(plain.get(name, 0)), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", ["vit", "dinov3", "siglip"])
def test_the_compiled_pass_captures_the_same_tokens(monkeypatch, family):
    """Without code generation, which needs no compiler; nothing is compiled anew after the first batch."""
    compile_model, graphs, counts = torch.compile, [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function: compile_model(function, backend=backend))
    plain = make(teacher=tiny(family))
    compiled = copy.deepcopy(plain)
    compiled.compile_teacher()
    for seed in range(3):
        expected, found = (d.teacher_features(images(seed=seed)) for d in (plain, compiled))
        counts.append(len(graphs))
        assert found.outputs.keys() == expected.outputs.keys()
        for block, tokens in expected.outputs.items():
            torch.testing.assert_close(found.outputs[block], tokens)
    torch.testing.assert_close(*(distiller(images()).loss for distiller in (plain, compiled)))
    assert counts[0] > 0
    assert {*counts, len(graphs)} == {counts[0]}


def test_a_teacher_is_compiled_once(tmp_path):
    with pytest.raises(
        ValueError, match=r"^`compile_teacher` must be left out with `torch_compile`, which compiles t"
    ):
        make_trainer(tmp_path, compile_teacher=True, torch_compile=True)
