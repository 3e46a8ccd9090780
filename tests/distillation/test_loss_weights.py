"""The loss of every distiller is the sum of its logged components times their weights, as the loss figure shows it."""

from types import SimpleNamespace

import pytest
import torch
from adapters import attach
from distillers import make, small_student
from zoo import images, tiny_vit

from singer_hf.baselines.method_table import make_method
from singer_hf.distillation.adapter.inline_distiller import InlineDistiller
from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.distillation.feature_distiller import FeatureDistiller

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")
ARGS = SimpleNamespace(kd_weight=2.0, kd_loss="mse", target_norm="none", teacher_layers=None, student_layers=None)


def of_method(name, **settings):
    return make_method(name, settings).make_distiller(small_student(), tiny_vit(), ARGS)


def inline(objective):
    teacher = attach(tiny_vit(), layers_to_transform=[1, 2])
    return InlineDistiller(small_student(num_hidden_layers=4), teacher, objective, kd_weight=2.0)


DISTILLERS = {
    "fitnet": lambda: FeatureDistiller(small_student(), tiny_vit(), kd_weight=2.0),
    "singer": lambda: make(kd_weight=2.0, outlier_weight=0.5, info_weight=3.0),
    "vitkd": lambda: of_method("vitkd", generation_weight=0.1),
    "relational": lambda: of_method("relational", relational_weight=0.7),
    "cleaned": lambda: inline(None),
    "cleaned, trained along": lambda: inline(AdapterObjective(outlier_weight=0.5, info_weight=2.0)),
}


@pytest.mark.parametrize("name", DISTILLERS)
def test_the_loss_is_the_weighted_sum_of_its_components(name):
    torch.manual_seed(0)
    distiller = DISTILLERS[name]().eval()
    with torch.no_grad():
        output = distiller(images())
    assert set(distiller.loss_weights) == set(output.components)
    weighted = sum(weight * output.components[name] for name, weight in distiller.loss_weights.items())
    torch.testing.assert_close(weighted, output.loss)
