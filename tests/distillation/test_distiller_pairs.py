"""Any teacher with any student: other families, widths, depths, patch sizes, prefix tokens and grids."""

import pytest
import torch
import transformers as hf
from distillers import adapter_part, objective_part
from peft import get_peft_model
from torch.nn import functional as F
from zoo import SIZES, images, tiny, tiny_vit

from singer_hf import SingerConfig, SingerDistiller
from singer_hf.distillation.losses import outlier_loss
from singer_hf.vit.features import capture_features

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

TEACHERS = ("vit", "deit", "dinov2_registers", "dinov3", "siglip")
SMALL = {**SIZES, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def timm_model(architecture, **model_args):
    pytest.importorskip("timm")
    return hf.TimmWrapperModel(hf.TimmWrapperConfig(architecture=architecture, model_args=model_args))


STUDENTS = {
    "deit": lambda: hf.DeiTModel(hf.DeiTConfig(**SMALL), add_pooling_layer=False),
    "dinov2_registers_16": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**{**SMALL, "patch_size": 16}, mlp_ratio=2)
    ),
    "resnet": lambda: hf.ResNetModel(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)),
    "timm_cnn": lambda: timm_model("resnet10t"),
    "timm_vit": lambda: timm_model("vit_tiny_patch16_224", **TIMM_VIT),
}


def make(teacher, student, **settings):
    torch.manual_seed(0)
    student = student if isinstance(student, torch.nn.Module) else student()
    config = SingerConfig(r=4, layers_to_transform=[1, 3], **adapter_part("paper"))
    settings = {"image_size": (32, 32), **objective_part("paper"), **settings}
    return SingerDistiller(student, get_peft_model(teacher, config), **settings).train()


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_pair_takes_steps_that_lower_the_loss(teacher, student):
    distiller = make(tiny(teacher), STUDENTS[student], student_normalization=IMAGENET, teacher_normalization=HALF)
    trained = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(4):
        output = distiller(images())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append((output.loss.item(), output.kd_loss.item()))
    assert losses[-1] < losses[0]
    assert losses[-1][1] < losses[0][1]
    untouched = [name for name, p in distiller.student.named_parameters() if p.grad is None]
    assert all("norm." in name or name.endswith("mask_token") for name in untouched), untouched


@pytest.mark.parametrize(
    ("teacher", "student", "common"),
    [("vit", "deit", 1), ("deit", "deit", 2), ("siglip", "deit", 0), ("deit", "dinov2_registers", 1)],
)
def test_the_class_tokens_that_both_have_are_compared_and_registers_never(teacher, student, common):
    """The projector is the identity: L_KD can be written out from the tokens of both sides."""
    distiller = make(tiny(teacher), lambda: tiny(student, seed=1), outlier_weight=0, info_weight=0)
    for projector in distiller.projectors.values():
        torch.nn.init.eye_(projector.weight)
        torch.nn.init.zeros_(projector.bias)
    own = capture_features(distiller.student, images(), [1, 3])
    refined = distiller.refine(distiller.teacher_features(images()).outputs)
    expected = [
        F.mse_loss(
            torch.cat([own[i][:, :common], own[i][:, -16:]], dim=1),
            torch.cat([refined[i][:, :common], refined[i][:, -16:]], dim=1),
        )
        for i in (1, 3)
    ]
    torch.testing.assert_close(distiller(images()).kd_loss, sum(expected) / 2)


def test_registers_of_the_teacher_are_neither_refined_nor_counted_as_outliers():
    distiller = make(tiny("dinov2_registers"), STUDENTS["deit"])
    raw = distiller.teacher_features(images()).outputs
    refined = distiller.refine(raw)
    assert all(torch.equal(tokens[:, :5], raw[i][:, :5]) for i, tokens in refined.items())
    expected = sum(outlier_loss(tokens[:, 5:]) for tokens in refined.values()) / 2
    torch.testing.assert_close(distiller(images()).outlier_loss, expected)


def test_a_student_of_twice_the_patch_size_gets_a_teacher_image_of_half_the_size():
    distiller = make(tiny("dinov2"), STUDENTS["dinov2_registers_16"], image_size=(64, 64))
    assert [pair.grid for pair in distiller.pairs] == [(4, 4), (4, 4)]
    assert (distiller.teacher_input.teacher_image_size, distiller.teacher_input.grid) == ((32, 32), (4, 4))
    assert distiller(images(64, 64)).loss.isfinite()


def test_a_teacher_of_fixed_size_gets_its_size_and_the_students_map_is_interpolated():
    distiller = make(tiny("timm_vit"), STUDENTS["deit"], image_size=(48, 48))
    assert [pair.grid for pair in distiller.pairs] == [(6, 6), (6, 6)]
    assert (distiller.teacher_input.teacher_image_size, distiller.teacher_input.grid) == ((32, 32), (4, 4))
    pixel_values = images(48, 48)
    output = distiller(pixel_values)
    own = capture_features(distiller.student, pixel_values, [1, 2])
    refined = distiller.refine(distiller.teacher_features(pixel_values).outputs)
    expected = 0
    for i, j in ((1, 1), (3, 2)):
        feature_map = own[j][:, 2:].transpose(1, 2).reshape(2, 16, 6, 6)
        resized = F.interpolate(feature_map, (4, 4), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
        projected = distiller.projectors[str(i)](torch.cat([own[j][:, :1], resized], dim=1))
        expected += F.mse_loss(projected, refined[i]) / 2
    torch.testing.assert_close(output.kd_loss, expected)


def test_images_need_not_be_square():
    distiller = make(tiny("dinov3"), STUDENTS["deit"], image_size=(32, 64))
    assert distiller.teacher_input.grid == (4, 8)
    distiller(images(32, 64)).loss.backward()


def test_the_teacher_sees_the_same_pixels_in_its_own_normalisation():
    """Black in the student's normalisation must give the features of black in the teacher's."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    distiller = make(tiny_vit(), STUDENTS["deit"], student_normalization=IMAGENET, teacher_normalization=HALF)
    black = (torch.zeros(1, 3, 32, 32) - mean) / std
    expected = capture_features(tiny_vit(), torch.full((1, 3, 32, 32), -1.0), [1])[1]
    torch.testing.assert_close(distiller.teacher_features(black).outputs[1], expected, atol=1e-5, rtol=1e-5)


def test_models_with_heads_are_taken_as_they_are():
    student = tiny("vit_classifier", seed=1)
    distiller = make(tiny("vit_classifier"), student)
    distiller(images()).loss.backward()
    untouched = {name for name, p in student.named_parameters() if p.grad is None}
    assert untouched == {"classifier.weight", "classifier.bias", "vit.layernorm.weight", "vit.layernorm.bias"}


def test_a_wider_and_deeper_student_works():
    student = tiny_vit(num_blocks=9, hidden_size=48, num_attention_heads=3)
    distiller = make(tiny_vit(), student)
    assert distiller.student_layers == [3, 8]
    assert distiller.projectors["3"].weight.shape == (32, 48)
    distiller(images()).loss.backward()


def test_a_half_precision_teacher_teaches_a_float32_student():
    distiller = make(tiny_vit().bfloat16(), STUDENTS["deit"])
    output = distiller(images())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in distiller.parameters() if p.grad is not None)


def test_grids_that_cannot_be_matched_are_refused():
    with pytest.raises(ValueError, match=r"^teacher and student grids cannot be matched: the teacher's 4 x 4 patches"):
        make(tiny("timm_vit"), STUDENTS["deit"], image_size=(32, 64))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"^`pixel_values` must be images of 32 x 32 pixels"):
        make(tiny_vit(), STUDENTS["resnet"])(images(64, 64))
