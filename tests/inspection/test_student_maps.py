"""Maps of a teacher, its refined tokens and its students."""

import pytest
import torch

from singer_hf.inspection.report.student_maps import aligned_components, student_maps

pytest.importorskip("matplotlib")


def tokens():
    """Five images of 2 x 3 patches: refined tokens, the teacher's with a long one, and those of a narrower student."""
    generator = torch.Generator().manual_seed(0)
    content = (torch.rand(5, 6, 3, generator=generator) + 0.5) * torch.tensor([4.0, 2.0, 1.0])
    basis, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    refined = content @ basis[:3]
    teacher = refined.clone()
    teacher[3, 4] += 50 * basis[3]
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    return {"teacher": teacher, "refined teacher": refined, "student": 0.1 * content @ turned}


def test_a_student_with_the_same_content_has_the_same_colours():
    colours = aligned_components(tokens())
    assert {name: tuple(found.shape) for name, found in colours.items()} == dict.fromkeys(tokens(), (5, 6, 3))
    assert all(float(found.min()) >= 0 and float(found.max()) <= 1 for found in colours.values())
    ordinary = torch.ones(5, 6, dtype=torch.bool)
    ordinary[3, 4] = False
    torch.testing.assert_close(colours["teacher"][ordinary], colours["refined teacher"][ordinary])
    # Equal up to the directions of the turned axes, which Procrustes weighs by unit variance.
    assert (colours["student"] - colours["refined teacher"]).abs().mean() < 0.05


def test_every_image_has_a_row_of_norms_and_one_of_components():
    figure = student_maps(torch.zeros(2, 8, 12, 3), tokens(), (2, 3), [3, 0])
    panels = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in panels if axis.get_title()] == ["input", *tokens()]
    assert [axis.get_ylabel() for axis in panels if axis.get_ylabel()] == ["patch norms", "components"] * 2
    marked = [[patch.get_xy() for patch in axis.patches] for axis in panels if axis.get_ylabel() == "components"]
    assert marked == [[(3.5, 3.5)], []]  # patch (1, 1) of the first image, 4 x 4 pixels
    norms = [axis.images[0] for axis in panels if axis.images[0].get_array().shape == (2, 3)]
    assert len(norms) == 6
    assert len({image.norm for image in norms}) == 1
    longest = tokens()["teacher"].norm(dim=-1)
    assert float(norms[0].get_array()[1, 1]) == pytest.approx(float(longest.max() / longest.median()))
    scales = [axis for axis in figure.axes if not axis.images]
    assert [text.get_text() for text in scales[0].get_yticklabels()] == ["1×", "3×", "10×"]
