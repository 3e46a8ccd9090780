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

NAMES = {"location", "deviation", "share", "excess", "mean", "direction", "score_location", "score_deviation"}


def tokens_of_norms(*norms: float) -> torch.Tensor:
    """One image (1, N, 2) whose tokens have the given norms."""
    return torch.tensor(norms).view(1, -1, 1) * torch.tensor([0.6, 0.8])


def observed(*norms: float) -> OutlierGate:
    gate = OutlierGate(2)
    gate.observe(tokens_of_norms(*norms))
    return gate


def statistics(gate: OutlierGate) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in gate.state_dict().items()}


def planted(generator: torch.Generator, artifacts: int = 8, length: float = 80.0) -> torch.Tensor:
    """Two images (2, 200, 64) of tokens of norm 8; the first ones are artifacts along the second channel."""
    tokens = torch.randn(2, 200, 64, generator=generator)
    tokens[:, :artifacts, 1] += length
    return tokens


def test_statistics_are_those_of_the_inliers_and_of_the_outliers():
    # All norms: median 10, MAD 2, threshold 30. Without 100 and 50: median 9 of 4, 8, 9, 11, 12; MAD 2; mean 8.8.
    gate = observed(4, 8, 9, 11, 12, 100, 50)
    assert set(statistics(gate)) == NAMES | {"num_batches"}
    assert (gate.location.item(), gate.deviation.item()) == pytest.approx((9, 2))
    assert (gate.share.item(), gate.excess.item()) == pytest.approx((2 / 7, (100 / 9 + 50 / 9) / 7))
    torch.testing.assert_close(gate.mean, 8.8 * torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(gate.direction, torch.tensor([0.6, 0.8]))
    assert (gate.score_location.item(), gate.score_deviation.item()) == pytest.approx((9 - 8.8, 2), abs=1e-5)


def test_the_deviation_is_at_least_a_tenth_of_the_location():
    assert observed(10, 10, 10, 10, 10).deviation.item() == pytest.approx(1)


def test_the_gate_rises_with_the_norm():
    # Closed up to 9 + 10 x 2 = 29, fully open from 9 + 15 x 2 = 39 on.
    gate = observed(4, 8, 9, 11, 12, 100, 50)
    gate.direction.zero_()
    shares = gate(tokens_of_norms(9, 29, 31, 34, 39, 1000))
    torch.testing.assert_close(shares.flatten(), torch.tensor([0, 0, 0.2, 0.5, 1, 1]))


def test_the_gate_rises_with_the_score_of_either_sign():
    # Closed up to 7 x 0.1 from 0.5 on both sides, fully open from 10 x 0.1 on; no norm counts.
    gate = observed(4, 8, 9, 11, 12, 100, 50)
    gate.location.fill_(1), gate.deviation.fill_(1e3), gate.mean.fill_(1)
    gate.direction.copy_(torch.tensor([1.0, 0.0]))
    gate.score_location.fill_(0.5), gate.score_deviation.fill_(0.1)
    scores = [0.5, 1.2, 1.35, 1.5, 9, -0.2, -0.35, -0.5]
    tokens = torch.tensor([[[1 + score, 1 + across] for score, across in zip(scores, range(8), strict=True)]])
    torch.testing.assert_close(gate(tokens).flatten(), torch.tensor([0, 0, 0.5, 1, 1, 0, 0.5, 1]), rtol=0, atol=1e-4)


def test_artifacts_of_normal_length_are_found_by_the_direction_of_the_long_ones():
    generator, gate = torch.Generator().manual_seed(0), OutlierGate(64)
    for _ in range(3):
        gate.observe(planted(generator))
    assert gate.direction[1].abs() > 0.99
    normal = torch.zeros(1, 66, 64)
    normal[0, :64] = 8 * torch.eye(64)
    normal[0, 64, 1], normal[0, 65, 1] = -8, 80
    assert gate(normal).flatten().nonzero().flatten().tolist() == [1, 64, 65]
    assert gate(normal)[0, [1, 64, 65]].eq(1).all()
    ordinary = torch.randn(1, 1000, 64, generator=generator)
    assert gate(ordinary).count_nonzero() == 0


def test_a_gate_that_saw_no_batch_is_closed():
    assert not OutlierGate(2)(tokens_of_norms(1, 1e6)).any()


@pytest.mark.parametrize(
    ("count", "long", "is_open"),
    [(2000, 100.0, True), (2100, 100.0, False), (20, 3.1, True), (20, 2.9, False), (20, 1.0, False)],
    ids=["1 of 2000", "1 of 2100", "strong", "weak", "none"],
)
def test_few_or_weak_outliers_leave_the_gate_closed(count, long, is_open):
    gate = observed(*[1.0] * (count - 1), long)
    assert gate.is_open == is_open
    assert gate(tokens_of_norms(1e3, -1e3)).flatten().tolist() == [is_open] * 2


@pytest.mark.parametrize(("artifacts", "length"), [(1, 80.0), (20, 13.0)], ids=["one tail token", "weak"])
def test_a_teacher_without_artifacts_passes_bit_for_bit(artifacts, length):
    torch.manual_seed(0)
    layer = attach(tiny_vit(), layers_to_transform=[1], gate="outlier").base_model.singer_layers[1]
    layer.singer_gate["default"] = gate = OutlierGate(32)
    tokens = torch.randn(4, 601, 32)
    tokens[0, 1 : 1 + artifacts] += length * torch.eye(32)[3]
    layer.observe(tokens)
    assert gate.share > 0
    assert gate.direction.any()
    assert torch.equal(layer.refine(tokens), tokens)


def test_batches_without_outliers_leave_the_direction_and_all_statistics_finite():
    generator, gate = torch.Generator().manual_seed(0), OutlierGate(64)
    gate.observe(planted(generator, artifacts=0))
    assert all(value.isfinite().all() for value in statistics(gate).values())
    assert not gate.direction.any()
    gate.observe(planted(generator))
    found = gate.direction.clone()
    assert found[1].abs() > 0.99
    # The batch before has no scores and does not make their deviation smaller; MAD of a normal distribution.
    assert gate.score_deviation.item() == pytest.approx(0.6745, rel=0.1)
    for _ in range(3):
        gate.observe(planted(generator, artifacts=0))
    assert torch.equal(gate.direction, found)
    assert gate.share.item() == pytest.approx(16 / 400 / 5)
    assert gate.score_deviation.item() == pytest.approx(0.6745, rel=0.1)


def test_batches_of_zeros_leave_all_statistics_finite():
    gate = OutlierGate(2)
    gate.observe(torch.zeros(1, 4, 2))
    assert all(value.isfinite().all() for value in statistics(gate).values())
    assert not gate(torch.zeros(1, 4, 2)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_change_statistics_and_shares(dtype):
    generator = torch.Generator().manual_seed(0)
    tokens, plain, cast = planted(generator, artifacts=100, length=800.0), OutlierGate(64), OutlierGate(64)
    plain.observe(tokens)
    with torch.autocast("cpu", dtype):
        cast.observe(tokens)
        shares = cast(tokens)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in cast.state_dict().items())
    assert torch.equal(shares, plain(tokens))


def test_statistics_are_means_over_the_batches_and_settle():
    gate = observed(10, 10, 10)
    gate.observe(tokens_of_norms(20, 20, 20))
    assert (gate.location.item(), gate.deviation.item()) == pytest.approx((15, 1.5))
    for _ in range(NUM_SETTLING_BATCHES):
        gate.observe(tokens_of_norms(20, 21, 20, 300))
    settled = statistics(gate)
    assert settled["num_batches"] == NUM_SETTLING_BATCHES
    assert settled["direction"].any()
    gate.observe(tokens_of_norms(1000, 1000, 7000) * torch.tensor([1.0, -0.5]))
    assert all(torch.equal(value, settled[name]) for name, value in statistics(gate).items())


def test_a_settled_gate_measures_nothing_until_other_statistics_are_loaded(monkeypatch):
    gate = observed(10, 10, 10)
    early = statistics(gate)
    gate.settle()
    assert not gate.is_settled  # one batch is not enough
    gate.num_batches.fill_(NUM_SETTLING_BATCHES)
    gate.settle()
    measured = []
    monkeypatch.setattr("singer_hf.tuner.gate.token_norms", measured.append)
    gate.observe(tokens_of_norms(20, 20, 20))
    assert gate.is_settled
    assert measured == []
    monkeypatch.undo()
    gate.load_state_dict(early)
    gate.observe(tokens_of_norms(20, 20, 20))
    assert gate.location.item() == pytest.approx(15)


def gated_model(layers=(1,), opened: bool = True) -> PeftModel:
    torch.manual_seed(0)
    model = attach(tiny_vit(), layers_to_transform=list(layers), gate="outlier")
    if opened:
        for layer in model.base_model.singer_layers.values():
            gate = layer.singer_gate["default"]
            gate.location.fill_(0.1), gate.deviation.fill_(0.01), gate.num_batches.fill_(1)
            gate.share.fill_(0.1), gate.excess.fill_(1)
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
        f"base_model.model.layers.{block}.singer_gate.{name}" for block in (1, 3) for name in NAMES | {"num_batches"}
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
