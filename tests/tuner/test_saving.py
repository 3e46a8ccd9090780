"""Saving and loading: other heads, older path layouts, every loading call, and files that do not fit."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers as hf
import zoo
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from versions import needs
from zoo import every_family, images, tiny, tiny_vit

from singer_hf import SingerConfig
from singer_hf.tuner.gate import GATES
from singer_hf.tuner.layer import find_singer_layers
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit

pytestmark = pytest.mark.filterwarnings("ignore:.*exceeds the effective null dimension")
every_gate = pytest.mark.parametrize("gate", GATES)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# "layers" or, before transformers 5.9, "encoder.layer".
BLOCKS = f"base_model.model.{view_vit(tiny_vit()).blocks_path}"


def tokens_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return capture_features(model, images(), [view_vit(model).num_blocks - 1]).popitem()[1]


def trained(model: nn.Module, **config: object) -> PeftModel:
    """A PeftModel whose adapter no initialisation could have made; a gate is open for long tokens."""
    peft_model = get_peft_model(model, SingerConfig(**{"r": 4, "gate": "none", **config})).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for layer in find_singer_layers(peft_model).values():
            for parameter in layer.adapter_parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            for gate in layer.singer_gate.values():
                gate.location.fill_(0.2), gate.deviation.fill_(0.02), gate.num_batches.fill_(7)
                gate.share.fill_(0.1), gate.excess.fill_(1)
    return peft_model


def classifier() -> hf.ViTForImageClassification:
    """A classifier with the weights of `tiny_vit()`."""
    model = zoo.fill(hf.ViTForImageClassification(hf.ViTConfig(**zoo.SIZES)), seed=99)
    model.vit.load_state_dict(tiny_vit().state_dict())
    return model


@every_family
def test_an_adapter_comes_back_from_its_folder_with_equal_outputs(family, tmp_path):
    peft_model = trained(tiny(family))
    peft_model.save_pretrained(tmp_path)
    expected = tokens_of(peft_model)
    assert not torch.equal(tokens_of(tiny(family)), expected)
    loaded = PeftModel.from_pretrained(tiny(family), tmp_path)
    weights = dict(peft_model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in loaded.named_parameters())
    # Bit for bit only on some CPUs: where a tensor lies in memory can change the order of a sum.
    torch.testing.assert_close(tokens_of(loaded), expected, rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("options", [{"low_cpu_mem_usage": True}, {"is_trainable": True}, {"adapter_name": "mine"}])
@every_gate
def test_every_way_of_loading_gives_the_same_adapter(options, gate, tmp_path):
    peft_model = trained(tiny_vit(), gate=gate)
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path, **options)
    assert torch.equal(tokens_of(loaded), tokens_of(peft_model))
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    trainable = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert len(trainable) == (4 if options.get("is_trainable") else 0)


@every_gate
def test_a_second_adapter_is_loaded_beside_the_first(gate, tmp_path):
    first, second = trained(tiny_vit(), gate=gate), trained(tiny_vit(), gate=gate, r=6, layers_to_transform=[0])
    second.save_pretrained(tmp_path)
    expected = tokens_of(first)
    first.load_adapter(tmp_path, adapter_name="second")
    assert torch.equal(tokens_of(first), expected)
    first.set_adapter("second")
    assert torch.equal(tokens_of(first), tokens_of(second))


def test_several_adapters_are_saved_each_in_its_folder(tmp_path):
    peft_model = trained(tiny_vit())
    peft_model.add_adapter("other", SingerConfig(r=6, layers_to_transform=[0], init_weights="random", gate="none"))
    peft_model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / WEIGHTS)) == 4
    assert len(load_file(tmp_path / "other" / WEIGHTS)) == 2
    peft_model.set_adapter("other")
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path, subfolder="other")
    assert torch.equal(tokens_of(loaded), tokens_of(peft_model))


def test_the_file_holds_the_adapter_alone_and_the_config_no_paths(tmp_path):
    trained(tiny_vit(), r=5, layers_to_transform=[1, -1]).save_pretrained(tmp_path)
    shapes = {key: tuple(value.shape) for key, value in load_file(tmp_path / WEIGHTS).items()}
    assert shapes == {
        f"{BLOCKS}.{index}.singer_{kind}.weight": shape
        for index in (1, 3)
        for kind, shape in (("down", (5, 32)), ("up", (32, 5)))
    }
    saved = json.loads((tmp_path / CONFIG).read_text())
    assert saved["layers_to_transform"] == [1, 3]
    assert saved["num_prefix_tokens"] == 1
    assert "target_modules" not in saved


@pytest.mark.parametrize(("source", "target"), [(tiny_vit, classifier), (classifier, tiny_vit)])
def test_an_adapter_fits_the_same_backbone_with_and_without_a_head(source, target, tmp_path):
    peft_model = trained(source())
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(target(), tmp_path)
    assert torch.equal(tokens_of(loaded), tokens_of(peft_model))
    assert not torch.equal(tokens_of(target()), tokens_of(peft_model))


@every_gate
def test_an_adapter_saved_under_older_module_paths_loads(gate, tmp_path):
    peft_model = trained(tiny_vit(), gate=gate)
    peft_model.save_pretrained(tmp_path)
    older = {
        key.replace("base_model.model.layers.", "base_model.model.encoder.layer."): value
        for key, value in load_file(tmp_path / WEIGHTS).items()
    }
    save_file(older, tmp_path / WEIGHTS)
    assert all(".encoder.layer." in key for key in load_file(tmp_path / WEIGHTS))
    for model in (tiny_vit(), classifier()):
        assert torch.equal(tokens_of(PeftModel.from_pretrained(model, tmp_path)), tokens_of(peft_model))


@needs("transformers", "5.14")
@every_gate
def test_transformers_own_load_adapter_takes_the_folder(gate, tmp_path):
    peft_model = trained(tiny_vit(), gate=gate)
    peft_model.save_pretrained(tmp_path)
    model = tiny_vit()
    raw = tokens_of(model)
    model.load_adapter(str(tmp_path))
    assert torch.equal(tokens_of(model), tokens_of(peft_model))
    model.disable_adapters()
    assert torch.equal(tokens_of(model), raw)
    model.enable_adapters()
    model.delete_adapter("default")
    assert torch.equal(tokens_of(model), raw)


@needs("transformers", "5.14")
@every_gate
def test_transformers_own_load_adapter_finds_the_blocks_under_a_head(gate, tmp_path):
    peft_model, model = trained(tiny_vit(), gate=gate), classifier()
    peft_model.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path))
    assert torch.equal(tokens_of(model), tokens_of(peft_model))


def test_a_raw_timm_model_takes_an_adapter_and_loads_it(tmp_path):
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    model, twin = (zoo.fill(timm.create_model("vit_tiny_patch16_224", **sizes)) for _ in range(2))
    peft_model = trained(model)
    peft_model.save_pretrained(tmp_path)
    assert torch.equal(tokens_of(PeftModel.from_pretrained(twin, tmp_path)), tokens_of(peft_model))


@needs("transformers", "5.14")
def test_from_pretrained_of_the_adapter_folder_brings_its_teacher(tmp_path):
    teacher, adapter = tmp_path / "teacher", tmp_path / "adapter"
    tiny_vit().save_pretrained(teacher)
    model = hf.ViTModel.from_pretrained(teacher, add_pooling_layer=False).eval()
    peft_model = trained(model)
    peft_model.save_pretrained(adapter)
    assert json.loads((adapter / CONFIG).read_text())["base_model_name_or_path"] == str(teacher)
    loaded = hf.ViTModel.from_pretrained(adapter, add_pooling_layer=False).eval()
    assert torch.equal(tokens_of(loaded), tokens_of(peft_model))


def test_a_jacobian_adapter_is_trained_on_without_its_calibration_images(tmp_path):
    config = {"nullspace_source": "jacobian", "calibration_images": images(), "layers_to_transform": [1]}
    peft_model = trained(tiny_vit(), **config)
    peft_model.save_pretrained(tmp_path)
    for options in ({}, {"is_trainable": True}, {"is_trainable": True, "low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path, **options)
        assert torch.equal(tokens_of(loaded), tokens_of(peft_model))
    layer = PeftModel.from_pretrained(tiny_vit(), tmp_path, is_trainable=True).base_model.singer_layers[1]
    layer.refine(torch.randn(1, 17, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.adapter_parameters())


def test_loading_computes_no_null_space(tmp_path, monkeypatch):
    trained(tiny_vit()).save_pretrained(tmp_path)
    monkeypatch.setattr(
        "singer_hf.tuner.initial_weights.source_gram", lambda *_: pytest.fail("a null space was computed")
    )
    PeftModel.from_pretrained(tiny_vit(), tmp_path)
    PeftModel.from_pretrained(tiny_vit(), tmp_path, is_trainable=True)


def test_an_unloaded_teacher_saves_under_its_own_key_names(tmp_path):
    plain = trained(tiny_vit()).unload()
    plain.save_pretrained(tmp_path)
    tiny_vit().save_pretrained(tmp_path / "same")
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(tmp_path / "same/model.safetensors").keys()


@every_gate
def test_a_half_precision_teacher_gets_its_float32_adapter_back(gate, tmp_path):
    peft_model = trained(tiny_vit().bfloat16(), gate=gate)
    peft_model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / WEIGHTS).items()
    assert {value.dtype for name, value in saved if "num_batches" not in name} == {torch.float32}
    loaded = PeftModel.from_pretrained(tiny_vit().bfloat16(), tmp_path)
    for layer in loaded.base_model.singer_layers.values():
        assert {parameter.dtype for parameter in layer.adapter_parameters()} == {torch.float32}
    with torch.no_grad():
        pixel_values = images().bfloat16()
        assert torch.equal(loaded(pixel_values)[0], peft_model(pixel_values)[0])


# --- files that do not fit -------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    trained(tiny_vit(), layers_to_transform=[1, 3]).save_pretrained(tmp_path)
    return tmp_path


def _message_of_loading(folder: Path, model: nn.Module | None = None) -> str:
    with pytest.raises(ValueError, match=r"adapter|layers_to_transform") as error:
        PeftModel.from_pretrained(tiny_vit() if model is None else model, folder)
    return str(error.value)


def test_missing_weights_are_named(saved):
    weights = load_file(saved / WEIGHTS)
    del weights[f"{BLOCKS}.3.singer_up.weight"]
    save_file(weights, saved / WEIGHTS)
    assert _message_of_loading(saved) == (
        "the adapter file misses weights for this model and its configuration: block 3 singer_up. The file and "
        "adapter_config.json must come from the same adapter"
    )


def test_surplus_weights_are_named(saved):
    weights = load_file(saved / WEIGHTS)
    for kind in ("down", "up"):
        weights[f"base_model.model.layers.2.singer_{kind}.weight"] = torch.zeros(4, 32)
    save_file(weights, saved / WEIGHTS)
    assert _message_of_loading(saved) == (
        "the adapter file has surplus weights for this model and its configuration: block 2 singer_down, block 2 "
        "singer_up. The file and adapter_config.json must come from the same adapter"
    )


def test_weights_of_another_method_are_named(saved):
    key = f"{BLOCKS}.1.lora_A.weight"
    save_file({**load_file(saved / WEIGHTS), key: torch.zeros(4, 32)}, saved / WEIGHTS)
    assert _message_of_loading(saved) == f"'{key}' in the adapter file is not a tensor of a SiNGER adapter"


def test_another_hidden_size_gives_both_shapes(saved):
    wider = tiny_vit(hidden_size=48)
    assert _message_of_loading(saved, wider) == (
        f"the adapter does not fit this model: {BLOCKS}.1.singer_down.default.weight has shape (4, 32) "
        "in the file and (4, 48) here; it was trained on a teacher of another hidden size"
    )


def test_a_shallower_model_is_refused(saved):
    message = _message_of_loading(saved, tiny_vit(2))
    assert message == "`layers_to_transform` must lie in [-2, 1] for a model of 2 blocks, got 3"


def test_loading_needs_the_import_of_the_package(saved):
    """PEFT has no plug-in entry point: README and cards say that `import singer_hf` must come first."""
    code = textwrap.dedent("""
        import sys
        from peft import PeftConfig
        try:
            PeftConfig.from_pretrained(sys.argv[1])
        except KeyError as error:
            print("before", error)
        import singer_hf
        print("after", PeftConfig.from_pretrained(sys.argv[1]).r)
        from singer_hf import SingerConfig
    """)
    result = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == ["before 'SINGER'", "after 4"], result.stderr
