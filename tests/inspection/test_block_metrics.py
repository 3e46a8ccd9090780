"""Metrics of a model whose outliers are known exactly."""

import math

import pytest
import torch
from planted import BASE, BLOCKS, GRID, LASTING, LENGTH, PLANTED, expected_tokens, planted_images, planted_vit
from zoo import images, tiny, tiny_vit

from singer_hf.artifacts.outliers import OutlierRule, outlier_ratio
from singer_hf.artifacts.places import channel_roughness
from singer_hf.inspection.measure.audit import audit, outlier_summary, patch_norms
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.block_metrics import norm_histogram
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
    assert block.norm_quantiles["p50"] == pytest.approx(BASE, rel=1e-5)
    assert block.norm_quantiles["p99"] == pytest.approx(LONG, rel=1e-5)
    assert block.norm_quantiles["max"] == pytest.approx(LONG, rel=1e-5)
    assert block.outlier_strength == pytest.approx(LONG / BASE, rel=1e-5)
    assert block.max_over_median == pytest.approx(LONG / BASE, rel=1e-5)
    assert block.norm_mean == pytest.approx((3 * LONG + 21 * BASE) / 24, rel=1e-5)


def test_p99_over_median_is_that_of_the_training_log_and_the_demo():
    model, pixels = tiny_vit(), images(batch=6)
    result = audit(model, pixels, progress=False)
    norms = patch_norms(view_vit(model), pixels)
    assert [block.p99_over_median for block in result.blocks] == [float(outlier_ratio(block)) for block in norms]
    assert outlier_summary(model, pixels)["p99_over_median"] == result.blocks[-1].p99_over_median


def test_the_histogram_counts_every_norm_once():
    norms = torch.tensor([[1.0, 1.05, 2.0], [2.1, 4.1, 0.0]])
    histogram = norm_histogram(norms)
    assert (histogram["edges"][0], histogram["edges"][-1]) == (2.0**-24, pytest.approx(2 ** (17 / 8)))
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    counts = dict(zip(histogram["edges"], histogram["counts"], strict=False))
    assert {edge: count for edge, count in counts.items() if count} == {2.0**-24: 1, 1.0: 2, 2.0: 2, 4.0: 1}


def test_border_and_corners_are_distinguished_from_the_inside(planted):
    # Places 0 and 23 of a 4 x 6 grid are corners, place 8 lies inside.
    block = planted.blocks[1]
    assert (block.border_share, block.corner_share) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (block.border_expected, block.corner_expected) == (pytest.approx(16 / 24), pytest.approx(4 / 24))


def test_persistence_is_the_share_that_survives_the_next_block(planted):
    assert planted.blocks[0].persistence is None
    assert planted.blocks[1].persistence == pytest.approx(len(LASTING) / len(PLANTED))
    assert planted.blocks[2].persistence == 1.0
    assert planted.blocks[3].persistence is None


def test_directions_are_the_singular_directions_of_the_block(planted):
    tokens = expected_tokens(1)[list(PLANTED)]
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).repeat(5, 5)
    count = len(cosines)
    assert planted.blocks[1].outlier_cosine == pytest.approx(float((cosines.sum() - count) / (count * (count - 1))))
    others = expected_tokens(1)[[place for place in range(24) if place not in PLANTED]]
    crossed = unit @ (others / others.norm(dim=1, keepdim=True)).T
    assert planted.blocks[1].cross_cosine == pytest.approx(float(crossed.mean()), abs=1e-6)
    assert planted.blocks[0].cross_cosine is None
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
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).var(-1, correction=0).mean(1).sqrt().flatten(1)
    others = [place for place in range(24) if place not in PLANTED]
    assert block.texture_outliers == pytest.approx(0.0, abs=1e-3)
    assert block.texture_others == pytest.approx(float(patches[:, others].mean()), rel=1e-4)
    assert block.texture_rank == pytest.approx(1 / 23)  # the three smoothest of 24: mean rank (0 + 1 + 2) / 3 of 23


def test_the_frequency_does_not_depend_on_the_norm(planted):
    tokens, block = expected_tokens(1), planted.blocks[1]
    scores = channel_roughness(tokens / tokens.norm(dim=1, keepdim=True))
    others = [place for place in range(24) if place not in PLANTED]
    assert block.frequency_outliers == pytest.approx(float(scores[list(PLANTED)].mean()), rel=1e-5)
    assert block.frequency_others == pytest.approx(float(scores[others].mean()), rel=1e-5)
    assert block.frequency_p99_over_median == pytest.approx(float(outlier_ratio(scores[None])), rel=1e-5)
    assert planted.blocks[0].frequency_outliers is None


def test_uniform_attention_is_proportional_to_the_number_of_outliers(planted):
    # Queries and keys are 0, so that each of 25 tokens gets 1/25.
    assert planted.blocks[1].attention_share == pytest.approx(3 / 25)
    assert planted.blocks[1].attention_uniform == pytest.approx(3 / 25)
    assert planted.blocks[1].class_attention_share == pytest.approx(3 / 24)
    assert planted.blocks[1].class_attention_uniform == pytest.approx(3 / 24)
    assert planted.blocks[3].attention_note == "no block follows"
    assert planted.blocks[3].class_attention_share is None


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
        rows = output.attentions[index + 1].mean(1)[:, 0, 1:]
        shares = [row[chosen].sum() / row.sum() for row, chosen in zip(rows, mask, strict=True) if chosen.any()]
        expected = float(sum(shares) / len(shares))
        assert result.blocks[index].class_attention_share == pytest.approx(expected, rel=1e-5)


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


def test_clean_and_planted_models_get_their_verdict(planted):
    clean = judge(audit(tiny_vit(), images(batch=4), name="teacher", progress=False))
    assert (clean.level, clean.headline) == ("clean", "teacher shows no high-norm artifacts on these images.")
    found = judge(planted)
    assert found.level == "strong"
    assert found.headline == "ViTModel has artifacts: high-norm patch tokens that would dominate a feature loss."
    assert "They appear in 3 of 4 blocks, from block 1 to block 3." in found.sentences[0]
    assert any("the leading singular direction of the MLP of block 1" in sentence for sentence in found.sentences)
