import json
import math

import pytest
import torch
from planted import BASE, LENGTH, planted_adapter, planted_images, planted_vit
from transformers import ResNetConfig, ResNetModel, ViTModel
from zoo import every_family, images, tiny, tiny_vit

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.inspection.measure.audit import audit, outlier_summary
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.vit.structure import view_vit

LONG = math.hypot(BASE, LENGTH)


@pytest.fixture(scope="module")
def planted() -> AuditResult:
    return audit(planted_vit(), [planted_images(3), planted_images(2, seed=1)], progress=False)


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


@every_family
def test_every_family_is_audited_in_plain_numbers(family):
    result = audit(tiny(family), [{"pixel_values": images(batch=3)}], rule=OutlierRule(1.0, 0.0), progress=False)
    assert len(result.blocks) == 4
    assert all(0 < block.outlier_share < 0.5 for block in result.blocks)
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_result_survives_being_saved(planted, tmp_path):
    planted.save(tmp_path / "audit.json")
    assert AuditResult.load(tmp_path / "audit.json") == planted


def test_an_audit_from_before_the_metrics_at_artifact_places_can_be_read(planted):
    data = planted.to_dict()
    new = [name for name in data["blocks"][0] if name.startswith(("cross_", "frequency_", "class_attention_"))]
    assert len(new) == 6
    for block in data["blocks"]:
        for name in new:
            del block[name]
    loaded = AuditResult.from_dict(data).blocks[1]
    assert (loaded.cross_cosine, loaded.outlier_cosine) == (None, planted.blocks[1].outlier_cosine)


def test_another_format_is_refused(planted):
    with pytest.raises(ValueError, match="`schema` must be 2, got 0; audit the model again"):
        AuditResult.from_dict(planted.to_dict() | {"schema": 0})


def test_the_model_is_left_as_it_was():
    model = tiny_vit(attention_probs_dropout_prob=0.5).train()
    model.layers[2].eval()
    modes = [module.training for module in model.modules()]
    audit(model, images(), progress=False)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:block .*exceeds the effective null dimension")
def test_an_adapter_is_audited_beside_the_raw_features(planted):
    result = audit(planted_adapter(), [planted_images(3), planted_images(2, seed=1)], progress=False)
    assert [block.outlier_count for block in result.blocks] == [0, 15, 10, 10]
    assert [(block.block, block.outlier_count) for block in result.refined] == [(1, 0), (3, 0)]
    assert result.refined[0].norm_quantiles["max"] == pytest.approx(BASE, rel=1e-5)
    assert result.architecture == planted.architecture == ViTModel.__name__


def test_a_batch_too_large_for_memory_is_halved_and_noted():
    model, pixels = planted_vit(), planted_images(6)
    expected = audit(model, pixels, progress=False).to_dict()
    model.register_forward_pre_hook(_little_memory(2))
    with pytest.warns(UserWarning, match="a batch of 6 images did not fit in memory; continued with batches of 3"):
        result = audit(model, [pixels], progress=False)
    assert result.notes[-1] == "a batch of 3 images did not fit in memory; continued with batches of 1"
    _assert_close(result.to_dict() | {"notes": []}, expected)


def test_an_image_too_large_for_memory_is_refused():
    model = planted_vit()
    model.register_forward_pre_hook(_little_memory(0))
    with pytest.raises(MemoryError, match="`images` must fit in memory one at a time, got an image that does not"):
        audit(model, planted_images(1), progress=False)


def _little_memory(limit: int):
    def check(module, args):
        if len(args[0]) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes.")

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
