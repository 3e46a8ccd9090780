"""Programs of torch.export: every family, with an adapter whose gate is open, at several batch sizes."""

import re

import pytest
import torch
import transformers as hf
from adapters import attach
from exporting import BATCH_SIZES, GATE_OPENS, OTHER_STUDENTS, assert_close, other_student, shortened, with_gate
from torch import nn
from zoo import TEXT, every_family, images, tiny, tiny_vit

from singer_hf.export import export_program
from singer_hf.export.exported_model import ExportedModel
from singer_hf.export.program import first_cause, run
from singer_hf.vit.inference import unwrap_peft
from singer_hf.vit.structure import view_vit


def own_outputs(model: nn.Module, pixel_values: torch.Tensor) -> object:
    """What the model returns by itself, in eval mode and with its adapters."""
    with torch.no_grad():
        return unwrap_peft(model)(pixel_values, **view_vit(model).forward_kwargs(pixel_values))


def saved_and_loaded(program: torch.export.ExportedProgram, folder: object) -> nn.Module:
    torch.export.save(program, folder / "model.pt2")
    return torch.export.load(folder / "model.pt2").module()


@every_family
def test_every_family_exports_with_an_adapter_and_equals_the_model(family):
    model = with_gate(shortened(family, num_blocks=1))
    run_program = export_program(model).module()
    for batch_size in BATCH_SIZES:
        pixel_values = images(batch=batch_size)
        found, expected = run_program(pixel_values), run(ExportedModel(model), pixel_values)
        assert_close(found, expected)
        assert not any(tensor.requires_grad for tensor in found.values())
        own, name = own_outputs(model, pixel_values), "logits" if family == "vit_classifier" else "last_hidden_state"
        torch.testing.assert_close(found[name], own[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHER_STUDENTS)
def test_students_that_are_no_plain_transformers_export(name, tmp_path):
    model, own_name = other_student(name), "logits" if "classifier" in name else "last_hidden_state"
    run_program = saved_and_loaded(export_program(model, image_size=(32, 64)), tmp_path)
    for batch_size in BATCH_SIZES:
        pixel_values = images(32, 64, batch_size)
        with torch.no_grad():
            own = model(pixel_values, output_hidden_states=True)
        maps = own.reshaped_hidden_states if name == "swin" else own.hidden_states
        assert_close(run_program(pixel_values), {own_name: own[own_name], "feature_map": maps[-1]})


def test_a_trained_students_program_runs_where_gradients_are_enabled():
    # Attention with a learned bias chooses its kernel by whether the bias needs a gradient.
    model, pixel_values = shortened("data2vec"), images()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_close(export_program(model).module()(pixel_values), run(ExportedModel(model), pixel_values))


def test_the_feature_map_holds_the_refined_patches_of_the_last_block_row_by_row(tmp_path):
    model, pixel_values = with_gate(shortened("dinov2")), images(24, 32)
    program = export_program(model, image_size=(24, 32))
    assert not program.graph_signature.buffers_to_mutate  # the statistics of the gates among them
    found = saved_and_loaded(program, tmp_path)(pixel_values)
    assert re.search(rb"site-packages|\.py\b", (tmp_path / "model.pt2").read_bytes()) is None
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "last_hidden_state": (2, 13, 32),
        "feature_map": (2, 32, 3, 4),
    }
    tokens = found["feature_map"].flatten(2).transpose(1, 2)
    normed = view_vit(model).final_norm(tokens)
    torch.testing.assert_close(normed, found["last_hidden_state"][:, 1:], rtol=1e-4, atol=1e-4)


def test_a_classifier_has_its_logits_and_the_tokens_of_the_model_inside():
    model, pixel_values = shortened("vit_classifier"), images()
    found = export_program(model).module()(pixel_values)
    assert list(found) == ["last_hidden_state", "logits", "feature_map"]
    with torch.no_grad():
        tokens = model.vit(pixel_values).last_hidden_state
    torch.testing.assert_close(found["last_hidden_state"], tokens, rtol=1e-4, atol=1e-4)


def exported_map(model: nn.Module) -> torch.Tensor:
    return export_program(model).module()(images(batch=3))["feature_map"]


def test_the_adapter_acts_where_its_gate_is_open_and_only_there():
    bare, model = exported_map(tiny_vit(num_blocks=1)), with_gate(tiny_vit(num_blocks=1))
    location = model.base_model.singer_layers[0].singer_gate["default"].location
    is_open = bare.norm(dim=1) > location + GATE_OPENS
    moved = (exported_map(model) - bare).abs().amax(dim=1)
    assert 0.3 < is_open.float().mean() < 0.7
    assert torch.equal(moved > 0, is_open)
    assert moved.max() > 0.1
    assert torch.equal(exported_map(with_gate(tiny_vit(num_blocks=1), is_open=False)), bare)
    with model.disable_adapter():
        assert torch.equal(exported_map(model), bare)


def test_the_model_stays_as_it_is_and_the_program_has_its_own_weights():
    model = tiny_vit(num_blocks=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = export_program(model)
    expected = program.module()(images())["feature_map"]
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    with torch.no_grad():
        model.layers[0].mlp.fc1.weight.zero_()
    assert torch.equal(program.module()(images())["feature_map"], expected)


@pytest.mark.parametrize("size", [0, -8, 1.5, "224", (32,), (32, 0), (32, 32, 3), True])
def test_an_image_size_that_is_none_is_refused(size):
    message = re.escape(
        f"`image_size` must be a number of pixels > 0, or (height, width), got {size!r}; leave it out for the size in "
        "the model's config"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        export_program(tiny_vit(num_blocks=1), image_size=size)


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="images must be at least as large as a patch of 8 x 8 pixels, got 4 x 4"):
        export_program(tiny_vit(num_blocks=1), image_size=4)


def test_a_size_that_the_model_cannot_take_is_refused():
    message = r"^`model` must run on images of 64 x 64 pixels and nothing else, TimmWrapperModel failed: .*64.*32"
    with pytest.raises(ValueError, match=message):
        export_program(shortened("timm_vit", num_blocks=1), image_size=64)


def test_a_model_that_needs_more_than_images_is_refused():
    message = "^`model` must run on images of 224 x 224 pixels and nothing else, BertModel failed: "
    with pytest.raises(ValueError, match=message):
        export_program(hf.BertModel(hf.BertConfig(**TEXT)))


def test_a_model_that_cannot_be_traced_is_refused():
    model = tiny_vit(num_blocks=1)
    model.layers[0].register_forward_hook(lambda module, args, output: output if output.mean() > 0 else -output)
    message = r"^`model` must be one that torch.export can trace, ViTModel failed under torch \d[^:\n]*: [^\n]+$"
    with pytest.raises(ValueError, match=message):
        export_program(model)


def test_the_first_cause_of_an_error_is_one_line():
    error = RuntimeError("above")
    error.__cause__ = ValueError("\nthe cause\nand a traceback")
    assert first_cause(error) == "the cause"
    assert first_cause(KeyError()) == "KeyError"


def test_half_precision_stays_half_precision():
    program = export_program(attach(tiny("vit").bfloat16(), layers_to_transform=[1]), image_size=16)
    found = program.module()(images(16, 16).bfloat16())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
