"""What the teacher sees of the student's batch: re-normalised exactly, in a size whose patch grid fits."""

import re

import pytest
import torch
import transformers as hf
from runs import make_trainer, small_student
from torch.nn import functional as F
from zoo import images, tiny, tiny_vit

from singer_hf.distillation.teacher_input import TeacherInput, teacher_image_size
from singer_hf.vit.structure import view_vit

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_the_same_pixels_arrive_in_the_teachers_normalisation():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def normalized(mean, std):
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    teacher_input = TeacherInput(view_vit(tiny_vit()), (32, 32), (4, 4), IMAGENET, HALF)
    torch.testing.assert_close(teacher_input(normalized(*IMAGENET)), normalized(*HALF), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("normalizations", [(None, None), (IMAGENET, IMAGENET), (IMAGENET, None), (None, HALF)])
def test_equal_or_unknown_normalisations_leave_the_images_bit_for_bit(normalizations):
    teacher_input = TeacherInput(view_vit(tiny_vit()), (32, 32), (4, 4), *normalizations)
    assert not teacher_input.renormalizes
    assert torch.equal(teacher_input(images()), images())


@pytest.mark.parametrize(
    ("image_size", "student_grid", "teacher_size"),
    [
        ((32, 32), (4, 4), (32, 32)),  # same patches
        ((32, 32), (2, 2), (16, 16)),  # patches twice as large: half the size
        ((32, 32), (8, 8), (64, 64)),  # half as large: twice the size
        ((36, 36), (4, 4), (32, 32)),  # DINOv2's 14 px against 16 px, in small
        ((32, 48), (4, 6), (32, 48)),  # not square
        ((64, 64), (2, 2), (64, 64)),  # a CNN's last map: no thumbnail for the teacher
        ((36, 36), (1, 1), (32, 32)),  # likewise, rounded to whole patches
    ],
)
def test_the_teachers_image_gives_the_students_grid(image_size, student_grid, teacher_size):
    teacher_input = TeacherInput(view_vit(tiny("dinov2")), image_size, student_grid)
    assert teacher_input.teacher_image_size == teacher_size
    assert teacher_input.grid == (teacher_size[0] // 8, teacher_size[1] // 8)
    assert teacher_input(images(*image_size)).shape == (2, 3, *teacher_size)


def test_images_are_resized_with_antialiasing_before_they_are_renormalised():
    teacher_input = TeacherInput(view_vit(tiny("dinov2")), (32, 32), (2, 2), HALF, IMAGENET)
    resized = F.interpolate(images(), (16, 16), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    torch.testing.assert_close(teacher_input(images()), (resized * 0.5 + 0.5 - mean) / std, atol=1e-5, rtol=1e-5)


def test_a_teacher_of_fixed_size_gets_its_own_size():
    teacher_input = TeacherInput(view_vit(tiny("timm_vit")), (48, 48), (6, 6))
    assert teacher_input.teacher_image_size == (32, 32)
    assert teacher_input.grid == (4, 4)


def test_a_fixed_square_teacher_refuses_wide_images():
    message = (
        "teacher and student grids cannot be matched: the teacher's 4 x 4 patches and the student's 4 x 8 have "
        "different aspect ratios; use images of the teacher's aspect ratio"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TeacherInput(view_vit(tiny("timm_vit")), (32, 64), (4, 8))


def test_a_teacher_that_takes_no_size_says_what_was_tried(monkeypatch):
    view = view_vit(tiny_vit())

    def refuse(*args, **kwargs):
        raise ValueError("no")

    monkeypatch.setattr("singer_hf.distillation.teacher_input._probe", refuse)
    message = (
        "teacher and student grids cannot be matched: ViTModel takes images of none of the sizes 16 x 16: no; "
        "32 x 32: no"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TeacherInput(view, (32, 32), (2, 2))


def test_images_of_another_size_than_planned_are_refused():
    message = "`pixel_values` must be images of 32 x 32 pixels, as given by `image_size`, got (2, 3, 40, 32)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TeacherInput(view_vit(tiny_vit()), (32, 32), (4, 4))(images(40, 32))


def test_a_half_precision_teacher_gets_half_precision_images():
    teacher_input = TeacherInput(view_vit(tiny_vit().bfloat16()), (32, 32), (4, 4), IMAGENET, HALF)
    assert teacher_input(images()).dtype == torch.bfloat16


def test_nothing_of_it_is_saved_or_trained():
    teacher_input = TeacherInput(view_vit(tiny_vit()), (32, 32), (4, 4), IMAGENET, HALF)
    assert teacher_input.state_dict() == {}
    assert list(teacher_input.parameters()) == []


def test_the_teachers_size_is_known_before_a_run(tmp_path):
    """Patches twice as large, as in the run; a CNN's map of 8 x 8, and its last one, 2 x 2."""
    trainer = make_trainer(tmp_path, bare=True)
    assert trainer.distiller.teacher_input.teacher_image_size == (16, 16)
    assert teacher_image_size(small_student(), view_vit(tiny_vit()), (32, 32)) == (16, 16)
    assert teacher_image_size(small_student(image_size=64), view_vit(tiny("dinov2"))) == (32, 32)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1]}
    cnn = hf.ResNetModel(hf.ResNetConfig(**sizes))
    assert teacher_image_size(cnn, view_vit(tiny("dinov2")), (32, 32), [0, 1]) == (64, 64)
    assert teacher_image_size(cnn, view_vit(tiny("dinov2")), (32, 32)) == (16, 16)


def test_an_image_processor_smaller_than_the_students_patch_is_refused(tmp_path):
    small = hf.ViTImageProcessor(size={"height": 8, "width": 8})
    with pytest.raises(ValueError, match=r"^images must be at least as large as a patch of 16 x 16 pixels, got 8 x 8"):
        make_trainer(tmp_path, processing_class=small)
