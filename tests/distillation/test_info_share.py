"""L_info on a share of the images: unbiased, other images in every step, the same terms otherwise."""

import re
from itertools import combinations

import pytest
import torch
from adapters import attach
from distillers import make, snapshot
from peft import get_peft_model
from zoo import every_family, images, tiny, tiny_vit

from singer_hf import SingerConfig, SingerDistiller
from singer_hf.distillation.adapter import objective as objective_module
from singer_hf.distillation.adapter.cleaner import TeacherCleaner
from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.tuner.layer import SingerLayer

pytestmark = pytest.mark.filterwarnings("ignore:.*exceeds the effective null dimension")
CPU = torch.device("cpu")


def fix_images(monkeypatch, chosen):
    monkeypatch.setattr(AdapterObjective, "draw_images", lambda *_: torch.tensor(chosen))


def cleaner(**objective):
    return TeacherCleaner(attach(tiny_vit(), layers_to_transform=[0, 2]), AdapterObjective(**objective)).train()


MODULES = {
    "gram": lambda **options: make(**options),
    "reference": lambda **options: make(info_loss="reference", **options),
    "neighbouring blocks": lambda **options: make((0, 1), **options),
    "gate": lambda **options: make(**options),
    "cleaner": cleaner,
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("number", [1, 2])
def test_the_mean_over_all_choices_is_the_term_of_all_images(monkeypatch, name, number):
    """Of the values and of the gradients; images of different lengths, so that the choices differ."""
    pixel_values = images(batch=4) * torch.tensor([0.3, 1.0, 2.0, 5.0]).view(-1, 1, 1, 1)
    if name == "gate":
        monkeypatch.setattr(SingerLayer, "gate_shares", lambda _, patches: (patches[..., 0] > 0).float())
    full, shared = MODULES[name](info_share=1), MODULES[name](info_share=number / 4)
    shared.load_state_dict(full.state_dict())
    expected = full(pixel_values).info_loss
    expected.backward()
    values = []
    for chosen in combinations(range(4), number):
        fix_images(monkeypatch, chosen)
        values.append(shared(pixel_values).info_loss)
    mean = torch.stack(values).mean()
    torch.testing.assert_close(mean, expected)
    assert torch.stack(values).std() > 0.01 * mean
    mean.backward()
    for (parameter_name, own), other in zip(shared.named_parameters(), full.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None), parameter_name
        if own.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_other_terms_are_those_of_all_images(name):
    full, shared = (MODULES[name](info_share=share)(images(batch=4)) for share in (1, 0.25))
    torch.testing.assert_close(shared.outlier_loss, full.outlier_loss)
    if hasattr(full, "kd_loss") and full.kd_loss is not None:
        torch.testing.assert_close(shared.kd_loss, full.kd_loss)


@pytest.mark.parametrize("name", MODULES)
def test_in_evaluation_all_images_are_taken(name):
    full, shared = (MODULES[name](info_share=share).eval() for share in (1, 0.25))
    assert torch.equal(shared(images(batch=4)).info_loss, full(images(batch=4)).info_loss)


@every_family
def test_every_family_is_replayed_for_the_chosen_images(monkeypatch, family):
    """Two chosen images of three give the term of a batch of those two."""
    settings = {"student_layers": [1, 3], "image_size": (32, 32), "info_share": 0.6}
    config = SingerConfig(r=4, layers_to_transform=[1, 2], gate="none", init_scale=1.0)
    distiller = SingerDistiller(tiny("deit"), get_peft_model(tiny(family), config), **settings).train()
    pixel_values = images(batch=3)
    fix_images(monkeypatch, [2, 0])
    value = distiller(pixel_values).info_loss
    expected = distiller.eval()(pixel_values[[2, 0]]).info_loss
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)
    assert value > 0


@pytest.mark.parametrize(
    ("share", "batch", "number"), [(0.25, 8, 2), (0.25, 5, 1), (0.01, 8, 1), (0.5, 3, 2), (0.9, 4, None), (1, 8, None)]
)
def test_at_least_one_image_is_drawn_and_none_twice(share, batch, number):
    drawn = AdapterObjective(info_share=share).draw_images(batch, CPU)
    assert (drawn is None) == (number is None)
    if number:
        assert len(drawn) == len(set(drawn.tolist())) == number
        assert set(drawn.tolist()) <= set(range(batch))


def test_every_image_is_as_likely_as_any_other_and_steps_differ():
    torch.manual_seed(0)
    objective, counts = AdapterObjective(info_share=0.5), torch.zeros(4)
    draws = [objective.draw_images(4, CPU) for _ in range(2000)]
    for drawn in draws:
        counts[drawn] += 1
    assert counts.sum() == 4000
    assert (counts - 1000).abs().max() < 4 * (2000 * 0.25) ** 0.5  # four standard deviations
    assert len({tuple(sorted(drawn.tolist())) for drawn in draws}) == 6


def test_the_images_come_from_torchs_generator_and_a_full_share_draws_nothing():
    objective = AdapterObjective(info_share=0.5)
    torch.manual_seed(3)
    first = [objective.draw_images(8, CPU).tolist() for _ in range(3)]
    torch.manual_seed(3)
    assert [objective.draw_images(8, CPU).tolist() for _ in range(3)] == first
    before = torch.get_rng_state()
    AdapterObjective(info_share=1).draw_images(8, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_with_the_same_generator_draw_independently(monkeypatch):
    objective, drawn = AdapterObjective(info_share=0.5), {}
    for rank in range(2):
        monkeypatch.setattr(objective_module, "process_place", lambda rank=rank: (rank, 2))
        torch.manual_seed(0)
        drawn[rank] = [objective.draw_images(4, CPU) for _ in range(1000)]
    same = sum(set(a.tolist()) == set(b.tolist()) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert abs(same - 1000 / 6) < 4 * (1000 * 5 / 36) ** 0.5


@pytest.mark.parametrize("value", [0, -0.5, 1.5, float("nan")])
def test_shares_out_of_range_are_refused(value):
    message = f"`info_share` must lie in (0, 1], got {value!r}; 1 takes all images"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AdapterObjective(info_share=value)


def test_looking_for_the_arguments_changes_nothing_of_the_distiller():
    full, shared = make(info_share=1), make(info_share=0.25)
    for name, value in snapshot(full).items():
        assert torch.equal(shared.state_dict()[name], value), name
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in shared.teacher_view.blocks)
    assert not shared.teacher.training
