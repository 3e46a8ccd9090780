"""Relational distillation: its term by hand, its sum with L_KD, other grids and widths."""

import re
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from distillers import small_student
from torch.nn import functional as F
from zoo import images, tiny_vit

from singer_hf.baselines.method_table import make_method
from singer_hf.baselines.relational import relational_loss
from singer_hf.vit.features import capture_features

ARGS = SimpleNamespace(kd_weight=2.0, kd_loss="mse", target_norm="none", teacher_layers=[1, 3], student_layers=None)


def make(student=None, teacher=None, inputs=None, **settings):
    torch.manual_seed(0)
    method = make_method("relational", settings)
    distiller = method.make_distiller(student or small_student(), teacher or tiny_vit(), ARGS, **(inputs or {}))
    return method, distiller.eval()


def cosines(tokens):
    return F.normalize(tokens, dim=-1) @ F.normalize(tokens, dim=-1).mT


def test_the_term_is_the_squared_difference_of_similarities_by_hand():
    student = torch.tensor([[[2.0, 0.0], [0.0, 5.0]]])  # orthogonal
    teacher = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]])  # equal
    assert relational_loss(student, teacher).item() == pytest.approx((0 + 1 + 1 + 0) / 4)
    teacher = torch.tensor([[[3.0, 0.0, 0.0], [3.0, 4.0, 0.0]]])  # cosine 3 / 5
    assert relational_loss(student, teacher).item() == pytest.approx(2 * 0.36 / 4)


def test_the_length_of_tokens_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 9, 4, generator=generator), torch.randn(2, 9, 6, generator=generator)
    long = teacher.clone()
    long[:, 3] *= 1000
    torch.testing.assert_close(relational_loss(student, long), relational_loss(student, teacher))
    assert relational_loss(student, 7 * student) < 1e-12


def test_different_numbers_of_patches_are_refused():
    message = "patches of the student (1, 4, 2) and of the teacher (1, 9, 2) must be equally many"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        relational_loss(torch.zeros(1, 4, 2), torch.zeros(1, 9, 2))


def test_the_loss_is_the_sum_of_both_terms_over_the_pairs():
    _, distiller = make(relational_weight=3.0)
    pixel_values = images()
    output = distiller(pixel_values)
    student = capture_features(distiller.student, pixel_values, range(3))
    teacher = capture_features(distiller.teacher, pixel_values, range(4))
    relational, kd = 0.0, 0.0
    for pair in distiller.pairs:
        own, target = student[pair.student], teacher[pair.teacher]
        relational += (cosines(own[:, 1:]) - cosines(target[:, 1:])).square().mean() / 2
        kd += (distiller.projectors[str(pair.teacher)](own) - target).square().mean() / 2
    torch.testing.assert_close(output.relational_loss, relational)
    torch.testing.assert_close(output.kd_loss, kd)
    torch.testing.assert_close(output.loss, 2 * kd + 3 * relational)
    assert set(output.components) == {"kd_loss", "relational_loss"}


def test_a_map_of_another_grid_is_resized_in_the_students_width():
    cnn = hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1])).eval()
    _, distiller = make(student=cnn, inputs={"image_size": (32, 32)})
    pixel_values = images()
    assert distiller.pairs[0].grid != distiller.teacher_input.grid
    maps = cnn(pixel_values, output_hidden_states=True).hidden_states
    teacher = capture_features(distiller.teacher, distiller.teacher_input(pixel_values), range(4))
    expected = 0.0
    for pair in distiller.pairs:
        resized = F.interpolate(maps[pair.student], distiller.teacher_input.grid, mode="bilinear", antialias=True)
        own = cosines(resized.flatten(2).mT)
        expected += (own - cosines(teacher[pair.teacher][:, 1:])).square().mean() / 2
    torch.testing.assert_close(distiller(pixel_values).relational_loss, expected)


def test_a_step_of_training_lowers_the_loss():
    method, distiller = make()
    distiller.train()
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        output = distiller(images())
        losses.append(output.relational_loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not any(parameter.requires_grad for parameter in distiller.teacher.parameters())
    assert method.describe(distiller).startswith("relational distillation")


def test_a_weight_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^`relational_weight` must be at least 0, got -1\.0$"):
        make_method("relational", {"relational_weight": -1.0})
