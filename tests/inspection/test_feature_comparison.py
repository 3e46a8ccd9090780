import pytest
import torch
from planted import BASE, GRID, LENGTH, PLANTED, planted_images, planted_vit
from safetensors.torch import save_file
from torch import nn
from zoo import images, tiny, tiny_vit

from singer_hf.inspection.measure.feature_comparison import compare_features, load_projectors


def test_a_model_resembles_itself():
    model = planted_vit()
    first, last = compare_features(model, model, [planted_images(3)], teacher_layers=[1, -1], progress=False)
    assert (first["teacher_block"], first["student_block"], last["teacher_block"]) == (1, 1, 3)
    assert first["cka"] == pytest.approx(1.0)
    assert first["cka_others"] is None  # the patches that are no outliers are all the same
    assert first["gram_distance"] == pytest.approx(0.0, abs=1e-6)
    assert (first["iou"], first["inherited"], last["iou"]) == (1.0, 1.0, 1.0)
    assert first["teacher_share"] == pytest.approx(len(PLANTED) / 24)
    assert "cosine" not in first


def test_the_student_is_measured_at_the_artifact_places_of_the_teacher():
    model, batches = planted_vit(), [planted_images(3), planted_images(4)]
    blocks = {"teacher_layers": [1], "student_layers": [1]}
    (pair,) = compare_features(model, model, batches, **blocks, progress=False)
    assert (pair["auroc_norm"], pair["auroc_direction"]) == (1.0, 1.0)
    assert pair["artifact_alignment"] > 0.9 > abs(pair["other_alignment"])
    (few,) = compare_features(model, model, batches[:1], **blocks, progress=False)
    assert (few["auroc_norm"], few["artifact_alignment"]) == (None, None)


def test_places_are_brought_to_the_student_s_grid(monkeypatch):
    monkeypatch.setattr("singer_hf.inspection.measure.feature_comparison._PLACE_IMAGES", 5)
    student = tiny_vit(num_blocks=2, image_size=(32, 48), patch_size=16)
    batches = [planted_images(3), planted_images(4)]
    (pair,) = compare_features(student, planted_vit(), batches, teacher_layers=[3], progress=False)
    assert 0 <= pair["auroc_norm"] <= 1  # 10 places in the first 5 of 7 images


def test_a_projector_brings_the_patch_cosine():
    model = planted_vit()
    projector = nn.Linear(32, 32)
    with torch.no_grad():
        projector.weight.copy_(torch.eye(32))
        projector.weight[0, 0] = -1.0  # turns all patches but the planted ones round
        projector.bias.zero_()
    (pair,) = compare_features(
        model,
        model,
        planted_images(2),
        teacher_layers=[1],
        student_layers=[1],
        projectors={"1": projector},
        progress=False,
    )
    assert pair["cosine_outliers"] == pytest.approx(1.0)
    assert pair["cosine_others"] == pytest.approx(-1.0)


def test_models_of_different_grids_are_compared_on_the_teachers():
    student = tiny_vit(num_blocks=2, image_size=(32, 48), patch_size=16)
    (pair,) = compare_features(student, planted_vit(), [planted_images(2)], teacher_layers=[3], progress=False)
    assert pair["student_block"] == 1
    assert pair["teacher_share"] == pytest.approx(2 / 24)
    assert pair["correlation"] is not None
    assert GRID == (4, 6)
    assert LENGTH > 2 * BASE


def test_the_teacher_may_see_its_own_images():
    seen = []

    def to_teacher(pixel_values):
        seen.append(tuple(pixel_values.shape))
        return pixel_values[:, :, :32, :32]

    student = tiny_vit(num_blocks=2, image_size=64, patch_size=16)
    compare_features(student, tiny("siglip"), images(64, 64), teacher_input=to_teacher, progress=False)
    assert seen == [(2, 3, 64, 64)]


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="`images` must hold at least one image, got none"):
        compare_features(tiny_vit(), tiny_vit(), [], progress=False)


def test_projectors_are_read_from_a_run(tmp_path):
    file = tmp_path / "model.safetensors"
    projectors = nn.ModuleDict({"3": nn.Linear(4, 6), "11": nn.Linear(4, 6)})
    save_file(projectors.state_dict(), file)
    loaded = load_projectors(file)
    assert list(loaded) == ["3", "11"]
    assert torch.equal(loaded["11"](torch.ones(4)), projectors["11"](torch.ones(4)))
    generator = nn.ModuleDict({"conv_in": nn.Conv2d(6, 6, 3)}).state_dict()
    save_file(projectors.state_dict() | {f"generator.{name}": value for name, value in generator.items()}, file)
    assert list(load_projectors(file)) == ["3", "11"]
    save_file({"classifier.weight": torch.ones(2, 2)}, file)
    with pytest.raises(ValueError, match="`path` must hold projectors by teacher block, got"):
        load_projectors(file)
