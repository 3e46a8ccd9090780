import json
import math

import numpy as np
import pytest
import torch
from peft import get_peft_model
from planted import (
    BASE,
    BLOCKS,
    DIRECTION,
    GRID,
    LASTING,
    LENGTH,
    PLANTED,
    expected_tokens,
    planted_images,
    planted_vit,
)
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel, ViTModel
from zoo import every_family, images, tiny, tiny_vit

from singer_hf import SingerConfig
from singer_hf.artifacts.directions import defect_directions, leading_left_direction
from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.artifacts.texture import patch_texture
from singer_hf.inspection.measure.audit import audit, outlier_summary
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.nullspace_report import report_nullspace
from singer_hf.inspection.measure.token_sums import (
    NUM_BINS,
    QUANTILE_ERROR,
    StreamingSums,
    histogram_bins,
    histogram_quantile,
    measure_batch,
)
from singer_hf.inspection.report.verdict import judge
from singer_hf.vit.structure import view_vit

LONG = math.hypot(BASE, LENGTH)


@pytest.fixture(scope="module")
def planted() -> AuditResult:
    return audit(planted_vit(), [planted_images(3), planted_images(2, seed=1)], progress=False)


def test_planted_tokens_are_counted_where_they_are(planted):
    assert [block.outlier_count for block in planted.blocks] == [0, 15, 10, 10]
    assert planted.blocks[1].outlier_share == pytest.approx(3 / 24)
    assert planted.blocks[1].images_with_outliers == 1.0
    expected = torch.zeros(24, dtype=torch.long)
    expected[list(PLANTED)] = 5
    assert planted.blocks[1].positions == expected.view(GRID).tolist()
    assert (planted.num_images, planted.grid, planted.image_size) == (5, (4, 6), (32, 48))


def test_planted_tokens_are_measured_as_long_as_they_are(planted):
    block = planted.blocks[1]
    assert block.norm_quantiles["p50"] == pytest.approx(BASE, rel=QUANTILE_ERROR)
    assert block.norm_quantiles["p99"] == pytest.approx(LONG, rel=QUANTILE_ERROR)
    assert block.norm_quantiles["max"] == pytest.approx(LONG, rel=1e-5)
    assert block.outlier_strength == pytest.approx(LONG / BASE, rel=1e-5)
    assert block.max_over_median == pytest.approx(LONG / BASE, rel=2 * QUANTILE_ERROR)
    assert block.norm_mean == pytest.approx((3 * LONG + 21 * BASE) / 24, rel=1e-5)


def test_border_and_corners_are_told_from_the_inside(planted):
    # Places 0 and 23 of a 4 x 6 grid are corners, place 8 lies inside.
    block = planted.blocks[1]
    assert (block.border_share, block.corner_share) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (block.border_expected, block.corner_expected) == (pytest.approx(16 / 24), pytest.approx(4 / 24))


def test_persistence_is_the_share_that_survives_the_next_block(planted):
    assert planted.blocks[0].persistence is None
    assert planted.blocks[1].persistence == pytest.approx(len(LASTING) / len(PLANTED))
    assert planted.blocks[2].persistence == 1.0
    assert planted.blocks[3].persistence is None


def test_directions_are_those_the_block_writes(planted):
    tokens = expected_tokens(1)[list(PLANTED)]
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).repeat(5, 5)
    count = len(cosines)
    assert planted.blocks[1].outlier_cosine == pytest.approx(float((cosines.sum() - count) / (count * (count - 1))))
    assert planted.blocks[1].defect_cosine["mlp"] == pytest.approx(LENGTH / LONG, rel=1e-5)
    assert planted.blocks[1].defect_cosine["attention"] == 0.0
    source = {"block": 1, "part": "mlp", "cosine": pytest.approx(LENGTH / LONG, rel=1e-5)}
    assert planted.blocks[3].defect_source == source
    assert planted.blocks[0].defect_source is None


def test_shares_of_the_loss_and_its_gradient_follow_their_definition(planted):
    tokens = expected_tokens(1)
    for student, key in ((torch.zeros(1, tokens.shape[1]), "zero"), (tokens.mean(0, keepdim=True), "mean")):
        error = (tokens - student).norm(dim=1)
        mask = torch.zeros(24, dtype=torch.bool)
        mask[list(PLANTED)] = True
        loss = error.square()[mask].sum() / error.square().sum()
        gradient = error[mask].sum() / error.sum()
        assert planted.blocks[1].kd_shares[f"loss_{key}"] == pytest.approx(float(loss), rel=1e-5)
        assert planted.blocks[1].kd_shares[f"gradient_{key}"] == pytest.approx(float(gradient), rel=1e-5)


def test_texture_is_that_of_the_pixels(planted):
    block, pixels = planted.blocks[1], torch.cat([planted_images(3), planted_images(2, seed=1)])
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).std(-1, correction=0).mean(1).flatten(1)
    others = [place for place in range(24) if place not in PLANTED]
    assert block.texture_outliers == pytest.approx(0.0, abs=1e-3)
    assert block.texture_others == pytest.approx(float(patches[:, others].mean()), rel=1e-4)
    assert block.texture_rank == pytest.approx(1 / 23)  # the three smoothest of 24: mean rank (0 + 1 + 2) / 3 of 23


def test_even_attention_gives_outliers_their_number(planted):
    # Queries and keys are 0, so that each of 25 tokens gets 1/25.
    assert planted.blocks[1].attention_share == pytest.approx(3 / 25)
    assert planted.blocks[1].attention_uniform == pytest.approx(3 / 25)
    assert planted.blocks[3].attention_note == "no block follows"


def test_attention_share_equals_the_eager_attention_of_the_next_block():
    model, pixels = tiny_vit(attn_implementation="eager"), images(batch=3)
    rule = OutlierRule(mad_factor=1.0, mad_floor=0.0)
    result = audit(model, pixels, rule=rule, progress=False)
    with torch.no_grad():
        output = model(pixels, output_attentions=True, output_hidden_states=True)
    for index in range(3):
        norms = output.hidden_states[index + 1][:, 1:].norm(dim=-1)
        mask = rule.mask(norms)
        shares = [
            attention[:, 1:, 1:][:, :, chosen].sum(-1).mean()
            for attention, chosen in zip(output.attentions[index + 1], mask, strict=True)
            if chosen.any()
        ]
        assert result.blocks[index].attention_share == pytest.approx(float(sum(shares) / len(shares)), rel=1e-5)


def test_attention_that_is_not_plain_is_left_out_with_the_reason():
    result = audit(tiny("dinov3"), images(), rule=OutlierRule(1.0, 0.0), progress=False)
    assert result.blocks[0].attention_share is None
    assert result.blocks[0].attention_note == (
        "its attention is more than softmax(QKᵀ/√d): positions or norms act inside it"
    )


def test_an_absolute_threshold_is_counted_beside_the_rule():
    rule = OutlierRule(absolute=2.0)
    result = audit(planted_vit(), planted_images(2), rule=rule, progress=False)
    assert [block.absolute_share for block in result.blocks] == [1.0] * BLOCKS
    assert result.rule == {"mad_factor": 10.0, "mad_floor": 0.1, "absolute": 2.0}


def test_the_rule_is_median_plus_k_mad_within_the_image():
    norms = torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0], [10.0, 10.0, 10.0, 10.0, 19.0]])
    thresholds, medians = OutlierRule(mad_factor=10.0, mad_floor=0.1).thresholds(norms)
    assert medians.flatten().tolist() == [3.0, 10.0]
    assert thresholds.flatten().tolist() == [13.0, 20.0]  # MAD 1; MAD 0, of which the floor makes 0.1 x 10
    assert OutlierRule().mask(norms).sum(1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mad_factor": 0}, "`mad_factor` must be greater than 0, got 0"),
        ({"mad_floor": -1}, "`mad_floor` must be at least 0, got -1"),
        ({"absolute": 0.0}, "`absolute` must be greater than 0 or None, got 0.0"),
    ],
)
def test_a_rule_out_of_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        OutlierRule(**values)


@pytest.mark.parametrize("sizes", [[6], [1, 5], [2, 2, 2], [1] * 6])
def test_the_result_does_not_depend_on_the_batches(sizes):
    model, pixels = planted_vit(), planted_images(6)
    whole = audit(model, pixels, progress=False).to_dict()
    split = audit(model, list(pixels.split(sizes)), progress=False).to_dict()
    _assert_close(whole, split)


def _assert_close(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            _assert_close(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            _assert_close(*pair)
    elif isinstance(first, float):
        assert first == pytest.approx(second, rel=1e-4, abs=1e-6)
    else:
        assert first == second


def test_memory_does_not_grow_with_the_images():
    sums = StreamingSums()
    tokens = [torch.randn(2, 24, 8) for _ in range(3)]
    sizes = set()
    for _ in range(5):
        sums.add(*measure_batch(tokens, torch.rand(2, 24), OutlierRule())[:2])
        sizes.add(sum(value.numel() for value in sums.sums.values()))
    assert len(sizes) == 1
    assert int(sums["histogram"].sum()) == 5 * 3 * 2 * 24


@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.97, 0.999, 1.0])
def test_a_quantile_is_right_to_within_one_bin(quantile):
    norms = torch.from_numpy(np.random.default_rng(0).lognormal(2, 1.5, 5000).astype(np.float32))
    counts = torch.bincount(histogram_bins(norms), minlength=NUM_BINS)
    expected = np.quantile(norms.numpy(), quantile, method="inverted_cdf")
    found = histogram_quantile(counts, quantile, float(norms.min()), float(norms.max()))
    assert found == pytest.approx(expected, rel=QUANTILE_ERROR)
    assert QUANTILE_ERROR < 0.0028


def test_texture_needs_no_multiple_of_the_patch_size():
    assert patch_texture(torch.zeros(1, 3, 19, 25), (8, 8)).shape == (1, 6)


def test_the_leading_direction_is_the_first_left_singular_vector():
    matrix = torch.randn(32, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(2.0 ** -torch.arange(12))
    expected = torch.linalg.svd(matrix).U[:, 0]
    assert abs(float(leading_left_direction(matrix) @ expected)) == pytest.approx(1.0, abs=1e-5)


@torch.no_grad()
def test_defect_directions_use_gains_centring_and_layer_scale():
    view = view_vit(tiny("dinov2"))
    block = dict(view.blocks[1].named_parameters())
    centre = torch.eye(32) - 1 / 32
    mlp = block["layer_scale2.lambda1"].diag() @ block["mlp.fc2.weight"] @ block["mlp.fc1.weight"]
    expected = torch.linalg.svd(mlp @ block["norm2.weight"].diag() @ centre).U[:, 0]
    assert abs(float(defect_directions(view, 1)["mlp"] @ expected)) == pytest.approx(1.0, abs=1e-3)
    value, output = (block[f"attention.{name}.weight"] for name in ("v_proj", "o_proj"))
    attention = block["layer_scale1.lambda1"].diag() @ output @ value @ block["norm1.weight"].diag() @ centre
    expected = torch.linalg.svd(attention).U[:, 0]
    assert abs(float(defect_directions(view, 1)["attention"] @ expected)) == pytest.approx(1.0, abs=1e-3)


@every_family
def test_every_family_is_audited_in_plain_numbers(family):
    result = audit(tiny(family), [{"pixel_values": images(batch=3)}], rule=OutlierRule(1.0, 0.0), progress=False)
    assert len(result.blocks) == 4
    assert all(0 < block.outlier_share < 0.5 for block in result.blocks)
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_result_survives_being_saved(planted, tmp_path):
    planted.save(tmp_path / "audit.json")
    assert AuditResult.load(tmp_path / "audit.json") == planted


def test_another_format_is_refused(planted):
    with pytest.raises(ValueError, match="`schema` must be 1, got 0; audit the model again"):
        AuditResult.from_dict(planted.to_dict() | {"schema": 0})


def test_the_model_is_left_as_it_was():
    model = tiny_vit(attention_probs_dropout_prob=0.5).train()
    model.layers[2].eval()
    modes = [module.training for module in model.modules()]
    audit(model, images(), progress=False)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _with_adapter():
    model = get_peft_model(planted_vit(), SingerConfig(r=1, layers_to_transform=[1, 3], nullspace_source="block"))
    for layer in model.base_model.singer_layers.values():
        with torch.no_grad():
            layer.singer_down["default"].weight.zero_()[0, DIRECTION] = 1.0
            layer.singer_up["default"].weight.zero_()[DIRECTION, 0] = -1.0
    return model


@pytest.mark.filterwarnings("ignore:block .*exceeds the effective null dimension")
def test_an_adapter_is_audited_beside_the_raw_features(planted):
    result = audit(_with_adapter(), [planted_images(3), planted_images(2, seed=1)], progress=False)
    assert [block.outlier_count for block in result.blocks] == [0, 15, 10, 10]
    assert [(block.block, block.outlier_count) for block in result.refined] == [(1, 0), (3, 0)]
    assert result.refined[0].norm_quantiles["max"] == pytest.approx(BASE, rel=1e-5)
    assert result.architecture == planted.architecture == ViTModel.__name__


@pytest.mark.filterwarnings("ignore:block .*exceeds the effective null dimension")
def test_the_null_space_report_measures_what_the_adapter_does():
    report = report_nullspace(_with_adapter(), [planted_images(2)], source="mlp")
    first, last = report["blocks"]
    tokens = expected_tokens(1)
    assert first["refinement"] == pytest.approx(float(3**0.5 * LENGTH / tokens.norm()), rel=1e-4)
    # At the patches that are no outliers nothing happens.
    assert [first[f"{name}_others"] for name in ("refinement", "next_output", "next_write")] == [0.0, 0.0, 0.0]
    # Block 2 answers the fleeting token alone; its unit fires stronger where channel 7 no longer stretches the norm.
    fleeting = expected_tokens(1)[23].float()
    read = torch.zeros(32)
    read[2] = 100.0
    raw, refined = (
        F.gelu(F.layer_norm(token, (32,)) @ read - 10.0)
        for token in (fleeting, fleeting.where(fleeting < LENGTH, torch.zeros(())))
    )
    assert first["next_write"] == pytest.approx(float(refined / raw) - 1, rel=1e-4)
    assert (last["next_output"], last["next_write"], last["leakage"]) == (None, None, None)
    # The weights of block 2's MLP read channel 2 only.
    assert first["singular_values"][:31] == pytest.approx([0.0] * 31, abs=1e-5)
    assert (first["up"]["e_prob"], first["down"]["e_prob"]) == (pytest.approx(0.0), pytest.approx(0.0))
    assert report["final"]["logits"] is None
    assert report["final"]["features"] > 0.9
    assert report["final"]["features_others"] < 1e-6


def test_a_model_without_adapter_has_no_null_space_report():
    message = "`model` must have a SiNGER adapter, got ViTModel without one"
    with pytest.raises(ValueError, match=message):
        report_nullspace(tiny_vit(), [images()])


def test_clean_and_planted_models_get_their_verdict(planted):
    clean = judge(audit(tiny_vit(), images(batch=4), name="teacher", progress=False))
    assert (clean.level, clean.headline) == ("clean", "teacher shows no high-norm artifacts on these images.")
    found = judge(planted)
    assert found.level == "strong"
    assert found.headline == "ViTModel has artifacts: high-norm patch tokens that would dominate a feature loss."
    assert "They appear in 3 of 4 blocks, from block 1 to block 3." in found.sentences[0]
    assert any("the MLP of block 1 writes most strongly" in sentence for sentence in found.sentences)


def test_a_batch_too_large_for_memory_is_halved_and_said():
    model, pixels = planted_vit(), planted_images(6)
    expected = audit(model, pixels, progress=False).to_dict()
    model.register_forward_pre_hook(_little_memory(2))
    with pytest.warns(UserWarning, match="a batch of 6 images did not fit in memory; went on with batches of 3"):
        result = audit(model, [pixels], progress=False)
    assert result.notes[-1] == "a batch of 3 images did not fit in memory; went on with batches of 1"
    _assert_close(result.to_dict() | {"notes": []}, expected)


def test_an_image_too_large_for_memory_is_refused():
    model = planted_vit()
    model.register_forward_pre_hook(_little_memory(0))
    with pytest.raises(MemoryError, match="`images` must fit in memory one at a time, got an image that does not"):
        audit(model, planted_images(1), progress=False)


def _little_memory(limit: int):
    def check(module, args):
        if len(args[0]) > limit:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8000000000 bytes.")

    return check


def test_other_errors_of_the_model_pass_through():
    model = planted_vit()
    model.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match=r"^broken$"):
        audit(model, planted_images(2), progress=False)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "`images` must hold at least one image, got none"),
        ([torch.zeros(0, 3, 32, 48)], "`images` must hold at least one image, got none"),
        (
            [torch.zeros(3, 32, 48)],
            r"`images` must hold batches of pixel values \(B, 3, H, W\), got shape \(3, 32, 48\)",
        ),
        (
            [torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 48, 32)],
            "`images` must all have one size, got 48 x 32 after 32 x 48 pixels; resize or crop them",
        ),
        (
            [torch.full((1, 3, 32, 48), float("nan"))],
            "block 0 gives tokens that are not finite in torch.float32; load the model in float32 or bfloat16",
        ),
    ],
)
def test_bad_images_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        audit(planted_vit(), batches, progress=False)


def test_a_model_that_is_no_plain_vit_is_refused():
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    with pytest.raises(ValueError, match="ResNetModel is not supported"):
        audit(model, images(), progress=False)


def test_the_summary_for_training_is_flat_and_right():
    model = planted_vit().train()
    summary = outlier_summary(model, planted_images(2))
    assert summary["outlier_share"] == pytest.approx(2 / 24)
    assert summary["outlier_share_worst"] == pytest.approx(3 / 24)
    assert summary["worst_block"] == 1.0
    assert summary["max_over_median"] == pytest.approx(LONG / BASE, rel=1e-5)
    assert summary["outlier_share_block_0"] == 0.0
    assert all(isinstance(value, float) for value in summary.values())
    assert model.training
    assert outlier_summary(view_vit(model), planted_images(2)) == summary
