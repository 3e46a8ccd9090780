"""What PEFT offers beyond attaching and loading: each call works with SiNGER or says that it does not."""

import json

import pytest
import torch
from adapters import attach, last_hidden_state
from peft import PeftConfig, PeftModel, TaskType, get_model_status, get_peft_model
from safetensors.torch import load_file
from versions import needs
from zoo import images, tiny, tiny_vit

from singer_hf import SingerConfig
from singer_hf.tuner.layer import find_singer_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*exceeds the effective null dimension")
NO_MERGING = (
    "a SiNGER adapter cannot be merged: it acts after a residual block, on patch tokens only. Use `unload()` to get "
    "the plain teacher back or `disable_adapter()` to bypass the adapter"
)


def dtypes(model: PeftModel) -> set[torch.dtype]:
    return {p.dtype for layer in find_singer_layers(model).values() for p in layer.adapter_parameters()}


def test_the_status_names_the_method():
    peft_model = attach(tiny_vit())
    status = get_model_status(peft_model)
    assert status.peft_types == {"default": "SINGER"}
    assert (status.adapter_model_type, status.num_adapter_layers) == ("SingerModel", 2)
    assert (status.enabled, status.active_adapters, status.requires_grad) == (True, ["default"], {"default": True})


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("options", [{}, {"is_trainable": True}])
def test_a_jacobian_adapter_loads_without_its_images_however_it_was_saved(tmp_path, native, options):
    images_of = {"nullspace_source": "jacobian", "calibration_images": images()}
    config = SingerConfig(r=4, **images_of, layers_to_transform=[1], gate="none")
    if native:  # transformers saves the config as it is, with `inference_mode: false`
        model = tiny_vit()
        model.add_adapter(config)
    else:
        model = get_peft_model(tiny_vit(), config).eval()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["inference_mode"] == (not native)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path, **options)
    assert torch.equal(last_hidden_state(loaded.eval()), last_hidden_state(model))
    again = tiny_vit()
    again.load_adapter(str(tmp_path), **options)
    assert torch.equal(last_hidden_state(again), last_hidden_state(model))
    beside = attach(tiny_vit())
    beside.load_adapter(tmp_path, "second", **options)
    beside.set_adapter("second")
    assert torch.equal(last_hidden_state(beside), last_hidden_state(model))


def test_a_new_jacobian_adapter_from_saved_settings_needs_images_of_its_own(tmp_path):
    config = SingerConfig(r=4, nullspace_source="jacobian")
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    again.calibration_images = images()
    down = attach_down(again)
    assert torch.equal(down, attach_down(SingerConfig(r=4, nullspace_source="jacobian", calibration_images=images())))
    assert down.any()


def test_an_adapter_from_the_config_of_a_saved_one_alone_is_the_identity_and_can_learn(tmp_path):
    attach(tiny_vit()).save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    config.inference_mode = False
    peft_model = get_peft_model(tiny_vit(), config)
    assert torch.equal(last_hidden_state(peft_model), last_hidden_state(tiny_vit()))
    peft_model(images())[0].square().sum().backward()
    for layer in find_singer_layers(peft_model).values():
        assert layer.singer_up["default"].weight.grad.any()


def attach_down(config: SingerConfig) -> torch.Tensor:
    return get_peft_model(tiny_vit(), config).base_model.singer_layers[2].singer_down["default"].weight.detach()


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [task for task in TaskType if task != TaskType.FEATURE_EXTRACTION])
@pytest.mark.parametrize("as_text", [False, True])
def test_tasks_of_text_are_refused(task, as_text):
    model = tiny("vit_classifier")
    with pytest.raises(ValueError, match="task_type") as error:
        get_peft_model(model, SingerConfig(r=4, task_type=task.value if as_text else task))
    assert str(error.value) == (
        "`task_type` must be left out or be 'FEATURE_EXTRACTION' for a vision transformer, got "
        f"'{task.value}': SiNGER trains no task head"
    )
    assert not find_singer_layers(model)


def test_feature_extraction_is_the_task_of_a_vision_transformer():
    peft_model = attach(tiny("vit_classifier"), task_type="FEATURE_EXTRACTION")
    assert peft_model(pixel_values=images()).logits.isfinite().all()


# --- saving and types ------------------------------------------------------------------------------------------------


def test_saved_embeddings_are_loaded_again(tmp_path):
    peft_model = attach(tiny_vit())
    peft_model.save_pretrained(tmp_path, save_embedding_layers=True)
    keys = [key for key in load_file(tmp_path / "adapter_model.safetensors") if "singer_" not in key]
    assert keys
    assert all("embeddings" in key for key in keys)
    other = tiny_vit()
    with torch.no_grad():
        other.embeddings.patch_embeddings.projection.weight.zero_()
    assert torch.equal(last_hidden_state(PeftModel.from_pretrained(other, tmp_path)), last_hidden_state(peft_model))


@needs("peft", "0.21")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_adapter_gets_the_type_of_its_block_where_autocasting_is_off(tmp_path, dtype):
    config = SingerConfig(r=4, init_weights="random", gate="none")
    peft_model = get_peft_model(tiny_vit().to(dtype), config, autocast_adapter_dtype=False)
    assert dtypes(peft_model) == {dtype}
    peft_model.add_adapter("low", config, autocast_adapter_dtype=False)
    peft_model.add_adapter("high", config)
    assert dtypes(peft_model) == {dtype, torch.float32}
    assert last_hidden_state(peft_model, images().to(dtype)).isfinite().all()
    peft_model.save_pretrained(tmp_path)
    half = PeftModel.from_pretrained(tiny_vit().to(dtype), tmp_path, autocast_adapter_dtype=False)
    assert dtypes(half) == {dtype}
    assert torch.equal(last_hidden_state(half, images().to(dtype)), last_hidden_state(peft_model, images().to(dtype)))
    assert dtypes(PeftModel.from_pretrained(tiny_vit().to(dtype), tmp_path)) == {torch.float32}


def test_a_float32_teacher_has_a_float32_adapter_either_way():
    for autocast in (True, False):
        peft_model = get_peft_model(tiny_vit(), SingerConfig(r=4), autocast_adapter_dtype=autocast)
        assert dtypes(peft_model) == {torch.float32}


# --- what SiNGER does not have ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
def test_merging_after_unloading_is_refused_with_the_same_reason(call):
    peft_model = attach(tiny_vit())
    peft_model.unload()
    with pytest.raises(NotImplementedError, match="SiNGER") as error:
        getattr(peft_model, call)()
    assert str(error.value) == NO_MERGING


@pytest.mark.parametrize("argument", ["adapter_names", "alora_offsets"])
def test_arguments_for_mixed_batches_are_refused(argument):
    peft_model = attach(tiny_vit())
    with pytest.raises(NotImplementedError, match="SiNGER") as error:
        peft_model(images(), **{argument: ["default", "__base__"]})
    assert str(error.value) == (
        f"`{argument}` is not supported by SiNGER, whose active adapters refine the whole batch: leave it out and "
        "choose the adapter with `set_adapter()`"
    )
    assert torch.equal(peft_model(images(), **{argument: None})[0], peft_model(images())[0])


def test_weighted_adapters_are_refused_by_name():
    peft_model = attach(tiny_vit())
    with pytest.raises(NotImplementedError, match="SiNGER") as error:
        peft_model.add_weighted_adapter(["default"], [1.0], "both")
    assert str(error.value) == (
        "SiNGER adapters cannot be combined by `add_weighted_adapter`. Activate several at once with "
        "`peft_model.base_model.set_adapter([...])`: their refinements add up"
    )
