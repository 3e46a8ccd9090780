import pytest
import torch

from singer_hf.distillation.distiller import SingerOutput
from singer_hf.training.loss_averages import LossAverages, non_finite_component


def outputs(kd, outlier, info, loss=0.0):
    values = {"loss": loss, "kd_loss": kd, "outlier_loss": outlier, "info_loss": info}
    return SingerOutput(**{name: torch.tensor(value) for name, value in values.items()})


class Alone:
    """One process: the mean over processes is the value."""

    def reduce(self, value, reduction):
        assert reduction == "mean"
        return value


def test_component_means_run_from_one_log_to_the_next():
    averages = LossAverages()
    assert averages.pop_means(Alone()) == {}
    for values in ((1.0, 2.0, 3.0), (3.0, 4.0, 5.0)):
        averages.add(outputs(*values))
    assert averages.pop_means(Alone()) == {"kd_loss": 2.0, "outlier_loss": 3.0, "info_loss": 4.0}
    averages.add(outputs(7.0, 8.0, 9.0))
    assert averages.pop_means(Alone()) == {"kd_loss": 7.0, "outlier_loss": 8.0, "info_loss": 9.0}
    assert averages.num_batches == 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, 1.0, 1.0, 3.0), None),
        ((1.0, float("nan"), 1.0, float("nan")), "outlier_loss"),
        ((1.0, 1.0, float("inf"), float("inf")), "info_loss"),
        ((1.0, 1.0, 1.0, float("-inf")), "loss"),
    ],
)
def test_the_first_component_that_is_not_finite_is_named(values, expected):
    assert non_finite_component(outputs(*values)) == expected
