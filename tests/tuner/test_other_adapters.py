"""A teacher with a LoRA still inside: refused for every place of the LoRA and every source, and fine once merged."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn
from zoo import fill, images, tiny_vit

from singer_hf import SingerConfig
from singer_hf.tuner.model import attach_adapter
from singer_hf.tuner.nullspace_sources import NULLSPACE_SOURCES, source_gram
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*exceeds the effective null dimension", "ignore:You are trying to modify a model with PEFT"
)
TARGETS = {"attention": ["q_proj", "v_proj"], "fc1": ["fc1"], "fc2": ["fc2"], "all-linear": "all-linear"}
every_place = pytest.mark.parametrize("place", TARGETS)


def with_lora(place: str) -> PeftModel:
    """A ViT with a LoRA whose weights are not zero."""
    peft_model = get_peft_model(tiny_vit(), LoraConfig(r=3, target_modules=TARGETS[place], lora_alpha=8))
    return fill(peft_model)


def inside(peft_model: PeftModel) -> nn.Module:
    return peft_model.get_base_model()


@every_place
@pytest.mark.parametrize("source", NULLSPACE_SOURCES)
@pytest.mark.parametrize("part", [lambda teacher: teacher, inside], ids=["PeftModel", "inside"])
def test_a_lora_inside_the_teacher_is_refused(place, source, part):
    teacher = part(with_lora(place))
    with pytest.raises(ValueError, match="merge them first") as error:
        get_peft_model(teacher, SingerConfig(r=4, nullspace_source=source, calibration_images=images()))
    assert "`teacher = teacher.merge_and_unload()`" in str(error.value)


def test_the_refusal_names_how_many_and_where():
    with pytest.raises(ValueError, match="merge") as error:
        attach_adapter(inside(with_lora("fc1")), SingerConfig(r=4))
    assert str(error.value) == (
        "the teacher must have no other adapters inside, it has 4 such as 'layers.0.mlp.fc1': merge them first "
        "(`teacher = teacher.merge_and_unload()`), as the null space is computed from the plain weights"
    )


def test_a_refused_teacher_is_left_as_it_was():
    teacher = with_lora("all-linear")
    keys, lora = set(teacher.state_dict()), teacher.peft_config["default"]
    with pytest.raises(ValueError, match="merge"):
        get_peft_model(inside(teacher), SingerConfig(r=4))
    assert set(teacher.state_dict()) == keys
    assert teacher.peft_config == {"default": lora}


def test_a_method_that_is_not_lora_is_refused_too():
    teacher = get_peft_model(tiny_vit(), IA3Config(target_modules=["fc2"], feedforward_modules=["fc2"]))
    with pytest.raises(ValueError, match="merge them first"):
        get_peft_model(teacher, SingerConfig(r=4))


def test_an_adapter_cannot_be_loaded_onto_such_a_teacher(tmp_path):
    get_peft_model(tiny_vit(), SingerConfig(r=4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="merge them first"):
        PeftModel.from_pretrained(inside(with_lora("attention")), tmp_path)


def test_a_model_that_has_an_adapter_of_ours_is_extended_with_add_adapter():
    peft_model = get_peft_model(tiny_vit(), SingerConfig(r=4))
    with pytest.raises(ValueError, match="PeftModel already") as error:
        get_peft_model(peft_model, SingerConfig(r=4))
    assert str(error.value) == (
        "the teacher is a PeftModel already: add another SiNGER adapter with `add_adapter(name, config)`, or pass the "
        "plain teacher, `teacher.unload()`"
    )


@every_place
@pytest.mark.parametrize("source", NULLSPACE_SOURCES)
def test_a_merged_teacher_gives_the_null_space_of_the_merged_weights(place, source):
    teacher = with_lora(place)
    with torch.no_grad():
        expected = teacher(images())[0]
    merged = teacher.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(images())[0], expected, rtol=1e-4, atol=1e-4)
    gram = source_gram(view_vit(merged), 1, source, images(), torch.Generator().manual_seed(1))
    config = {"nullspace_source": source, "calibration_images": images(), "layers_to_transform": [1]}
    peft_model = get_peft_model(merged, SingerConfig(r=4, **config))
    down = peft_model.base_model.singer_layers[1].singer_down["default"].weight.double()
    smallest = torch.linalg.eigvalsh(gram)[:4].sum()
    torch.testing.assert_close((down @ gram @ down.T).trace(), smallest, rtol=1e-3, atol=1e-3)


# --- a model with a LoRA inside, looked at without an adapter of ours ------------------------------------------------


@every_place
def test_the_structural_view_is_that_of_the_plain_model(place):
    view, plain = view_vit(with_lora(place)), view_vit(tiny_vit())
    for name in ("blocks_path", "hidden_size", "num_prefix_tokens", "num_blocks"):
        assert getattr(view, name) == getattr(plain, name)
    for own, other in zip(view.mlp_layers(1), plain.mlp_layers(1), strict=True):
        assert own.weight.shape == other.weight.shape
    assert not view.has_gated_mlp(1)


@every_place
def test_its_features_are_those_of_the_merged_model(place):
    model = with_lora(place)
    with torch.no_grad():
        features = capture_features(model, images(), [3])[3]
        merged = capture_features(model.merge_and_unload(), images(), [3])[3]
    torch.testing.assert_close(features, merged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("place", "source", "names"),
    [
        ("fc1", "mlp", "mlp.fc1"),
        ("fc2", "mlp", "mlp.fc2"),
        ("all-linear", "mlp", "mlp.fc1, mlp.fc2"),
        ("attention", "block", "attention.q_proj, attention.v_proj"),
        ("fc1", "block", "mlp.fc1"),
    ],
)
def test_weights_with_a_lora_inside_are_not_read_as_if_they_were_plain(place, source, names):
    with pytest.raises(ValueError, match="merge") as error:
        source_gram(view_vit(with_lora(place)), 1, source)
    assert str(error.value) == (
        f"the weights of {names} cannot be read, there are adapters inside: merge them first "
        "(`model = model.merge_and_unload()`)"
    )
