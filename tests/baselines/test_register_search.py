"""Test-time registers that find their block and their neurons by themselves."""

import re
from types import SimpleNamespace

import planted
import pytest
import torch
from distillers import small_student

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.norm_thresholds import SigmaRule
from singer_hf.baselines.cleanups.register_search import find_outlier_block, find_register_neurons
from singer_hf.baselines.method_table import make_method
from singer_hf.vit.features import capture_features

IMAGES = [planted.planted_images(batch=2), planted.planted_images(batch=1)]


def split_unit(model: torch.nn.Module, parts: int) -> None:
    """Divides what unit 0 of block 1 writes between that many units that are equally active."""
    fc1, fc2 = (model.get_submodule(f"layers.1.mlp.{name}") for name in ("fc1", "fc2"))
    with torch.no_grad():
        for unit in range(parts):
            fc1.weight[unit], fc1.bias[unit] = fc1.weight[0], fc1.bias[0]
        fc2.weight[:, :parts] = fc2.weight[:, :1].clone() / parts


def outliers_left(model: torch.nn.Module) -> list[int]:
    with torch.no_grad():
        features = capture_features(model, IMAGES[0], range(planted.BLOCKS))
    return [int(OutlierRule().mask(tokens[:, 1:].norm(dim=-1)).sum()) for tokens in features.values()]


@pytest.mark.parametrize("rule", [None, OutlierRule(mad_factor=5.0), SigmaRule(2.0)])
def test_the_block_is_the_one_that_writes_the_outliers(rule):
    """Three of 24 patches are long after block 1, two of them after the blocks behind it."""
    assert find_outlier_block(planted.planted_vit(), IMAGES, rule) == 1


def test_a_few_long_tokens_after_an_earlier_block_do_not_count():
    model = planted.planted_vit()
    with torch.no_grad():  # one patch of 24 is long from the start
        model.get_parameter("embeddings.position_embeddings")[0, 1 + 5, 0] = 40.0
    assert outliers_left(model)[0] == 2
    assert find_outlier_block(model, IMAGES) == 1


@pytest.mark.parametrize(("parts", "number"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8)])
def test_the_number_of_neurons_is_doubled_until_the_outliers_are_gone(parts, number):
    model = planted.planted_vit()
    split_unit(model, parts)
    found = find_register_neurons(model, IMAGES, outlier_block=1, num_neurons=None)
    assert sum(map(len, found.values())) == number
    assert set(range(parts)) <= set(found[1].tolist())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_outliers_that_no_neuron_writes_are_reported():
    model = planted.planted_vit()
    with torch.no_grad():
        model.get_parameter("embeddings.position_embeddings")[0, 1 + 5, 0] = 40.0
    message = "a test-time register of 1 neurons leaves 3 of 3 outliers after block 0; more neurons leave no fewer"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        find_register_neurons(model, IMAGES, outlier_block=0, num_neurons=None)


def distiller_of(**settings):
    method = make_method("test_time_register", settings)
    teacher = method.prepare(planted.planted_vit(), iter(IMAGES))
    student = small_student(image_size=planted.IMAGE, patch_size=planted.PATCH)
    args = SimpleNamespace(
        kd_weight=1.0, kd_loss="mse", target_norm="none", teacher_layers=[1, 3], student_layers=None
    )
    return method, method.make_distiller(student, teacher, args)


def test_by_default_a_teacher_loses_its_outliers_without_any_setting():
    method, distiller = distiller_of()
    assert {block: units.tolist() for block, units in distiller.teacher.test_time_registers.neurons.items()} == {
        1: [0]
    }
    assert outliers_left(distiller.teacher)[1] == 0
    assert method.describe(distiller).endswith("refined by a test-time register of 1 neuron(s) in block 1")
    assert method.card_settings(distiller) == {"register neurons": "1 neuron(s) in block 1"}
    distiller.train()(IMAGES[0]).loss.backward()
    assert all(parameter.grad is not None for parameter in distiller.projectors.parameters())


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"num_neurons": 3}, 3),
        ({"outlier_block": 1}, 1),
        ({"num_neurons": 1, "outlier_block": -1}, 1),
        ({"num_neurons": 2, "outlier_block": 3, "sigma": 2.0}, 2),
    ],
)
def test_settings_that_are_given_are_kept(settings, number):
    _, distiller = distiller_of(**settings)
    found = distiller.teacher.test_time_registers.neurons
    assert sum(map(len, found.values())) == number
    assert 0 in found[1].tolist()


def test_what_cannot_be_found_is_an_error():
    with pytest.raises(ValueError, match=r"^`images` must have outliers after some block, got none; use more images"):
        find_outlier_block(planted.planted_vit(), IMAGES, OutlierRule(mad_factor=1000.0))
    for settings, message in (
        ({"num_neurons": 0}, "`num_neurons` must be at least 1, got 0"),
        ({"sigma": -3.0}, "`sigma` must be greater than 0, got -3.0"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make_method("test_time_register", settings)
