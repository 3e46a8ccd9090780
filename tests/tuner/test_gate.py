"""The gate of an adapter: its statistics, what it lets pass, and that it is saved and loaded with the adapter."""

import json

import pytest
import torch
from adapters import attach, last_hidden_state, weights
from peft import PeftModel
from safetensors.torch import load_file
from zoo import images, tiny_vit

from singer_hf import SingerConfig
from singer_hf.tuner.gate import OutlierGate
from singer_hf.vit.running_statistics import NUM_SETTLING_BATCHES


def tokens_of_norms(*norms: float) -> torch.Tensor:
    """One image (1, N, 2) whose tokens have the given norms."""
    return torch.tensor(norms).view(1, -1, 1) * torch.tensor([0.6, 0.8])


def observed(*norms: float) -> OutlierGate:
    gate = OutlierGate()
    gate.observe(tokens_of_norms(*norms))
    return gate


def test_location_and_deviation_are_those_of_the_inlier_norms():
    # All norms: median 10, MAD 2, threshold 30. Without 100 and 50: median 9 of 4, 8, 9, 11, 12; MAD 2.
    gate = observed(4, 8, 9, 11, 12, 100, 50)
    assert (gate.location.item(), gate.deviation.item()) == pytest.approx((9, 2))
    assert gate.threshold.item() == pytest.approx(9 + 10 * 2)


def test_the_deviation_is_at_least_a_tenth_of_the_location():
    assert observed(10, 10, 10, 10, 10).deviation.item() == pytest.approx(1)


def test_the_gate_rises_from_the_threshold_to_1():
    # Threshold 29, fully open at 9 + 15 x 2 = 39.
    shares = observed(4, 8, 9, 11, 12, 100, 50)(tokens_of_norms(9, 29, 31, 34, 39, 1000))
    torch.testing.assert_close(shares.flatten(), torch.tensor([0, 0, 0.2, 0.5, 1, 1]))


def test_a_gate_that_saw_no_batch_is_closed():
    assert not OutlierGate()(tokens_of_norms(1, 1e6)).any()


def test_statistics_are_means_over_the_batches_and_settle():
    gate = observed(10, 10, 10)
    gate.observe(tokens_of_norms(20, 20, 20))
    assert (gate.location.item(), gate.deviation.item()) == pytest.approx((15, 1.5))
    for _ in range(NUM_SETTLING_BATCHES):
        gate.observe(tokens_of_norms(20, 20, 20))
    settled = gate.location.clone()
    assert gate.num_batches == NUM_SETTLING_BATCHES
    gate.observe(tokens_of_norms(1000, 1000))
    assert torch.equal(gate.location, settled)


def gated_model(layers=(1,), opened: bool = True) -> PeftModel:
    torch.manual_seed(0)
    model = attach(tiny_vit(), layers_to_transform=list(layers), gate="outlier")
    if opened:
        for layer in model.base_model.singer_layers.values():
            gate = layer.singer_gate["default"]
            gate.location.fill_(0.1), gate.deviation.fill_(0.01), gate.num_batches.fill_(1)
    return model


def test_only_outliers_are_refined_and_by_the_share_of_the_gate():
    layer = gated_model().base_model.singer_layers[1]
    gate = layer.singer_gate["default"]
    gate.location.fill_(1), gate.deviation.fill_(0.1)  # threshold 2, fully open from 2.5
    tokens = torch.nn.functional.normalize(torch.randn(2, 17, 32), dim=-1)
    tokens[:, 3] *= 10
    tokens[:, 5] *= 2.25
    refined = layer.refine(tokens)
    down, up = weights(gated_model(), 1)
    delta = tokens @ down @ up
    expected = tokens.clone()
    expected[:, 3] += delta[:, 3]
    expected[:, 5] += 0.5 * delta[:, 5]
    torch.testing.assert_close(refined, expected)
    ordinary = [i for i in range(17) if i not in (3, 5)]
    assert torch.equal(refined[:, ordinary], tokens[:, ordinary])


def test_a_teacher_without_outliers_passes_bit_for_bit():
    model = gated_model(opened=False)
    tokens = torch.randn(4, 17, 32)
    model.base_model.singer_layers[1].observe(tokens)
    assert torch.equal(model.base_model.singer_layers[1].refine(tokens), tokens)
    with model.disable_adapter():
        expected = last_hidden_state(model)
    model.base_model.singer_layers[1].singer_gate["default"].location.fill_(1e6)
    assert torch.equal(last_hidden_state(model), expected)


def test_one_image_gives_what_it_gives_in_a_batch():
    model, pixel_values = gated_model(), images()
    together = last_hidden_state(model, pixel_values)
    alone = torch.cat([last_hidden_state(model, image[None]) for image in pixel_values])
    torch.testing.assert_close(alone, together)


def test_the_gate_is_saved_and_loaded_with_the_adapter(tmp_path):
    model = gated_model((1, 3))
    expected = last_hidden_state(model)
    model.save_pretrained(tmp_path)
    keys = {key for key in load_file(tmp_path / "adapter_model.safetensors") if ".singer_gate." in key}
    assert keys == {
        f"base_model.model.layers.{block}.singer_gate.{name}"
        for block in (1, 3)
        for name in ("location", "deviation", "num_batches")
    }
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path).eval()
    assert loaded.peft_config["default"].gate == "outlier"
    assert torch.equal(last_hidden_state(loaded), expected)
    with loaded.disable_adapter():
        assert not torch.equal(last_hidden_state(loaded), expected)


def test_a_folder_of_version_0_1_which_names_no_gate_has_none(tmp_path):
    model = attach(tiny_vit(), layers_to_transform=[1])
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    assert saved.pop("gate") == "none"
    file.write_text(json.dumps(saved))
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path).eval()
    assert loaded.peft_config["default"].gate == "none"
    assert torch.equal(last_hidden_state(loaded), last_hidden_state(model))


def test_an_adapter_without_a_gate_has_no_statistics_in_its_file(tmp_path):
    attach(tiny_vit(), layers_to_transform=[1]).save_pretrained(tmp_path)
    assert not any("gate" in key for key in load_file(tmp_path / "adapter_model.safetensors"))


def test_adapters_with_and_without_gate_stand_side_by_side_and_can_be_deleted():
    model = gated_model()
    model.add_adapter("plain", SingerConfig(r=4, layers_to_transform=[1], gate="none", init_weights="random"))
    layer = model.base_model.singer_layers[1]
    assert list(layer.singer_gate) == ["default"]
    model.delete_adapter("default")
    assert list(layer.singer_gate) == []


def test_an_unknown_gate_is_refused():
    with pytest.raises(ValueError, match="`gate` must be one of 'none', 'outlier', got 'norm'"):
        SingerConfig(gate="norm")
