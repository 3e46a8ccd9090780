"""Running means of the loss components."""

import torch

from singer_hf.distillation.distiller import SingerOutput
from singer_hf.training.loss_averages import LossAverages

NAMES = ("kd_loss", "outlier_loss", "info_loss", "loss")


def outputs(*values):
    return SingerOutput(**{name: torch.tensor(value) for name, value in zip(NAMES, values, strict=False)})


class Alone:
    """One process: the mean over processes is the value."""

    def reduce(self, value, reduction):
        assert reduction == "mean"
        return value


def test_component_means_run_from_one_log_to_the_next():
    log = LossAverages()
    assert log.pop_means(Alone()) == {}
    for values in ((1.0, 2.0, 3.0), (3.0, 4.0, 5.0)):
        log.add(outputs(*values))
    assert log.pop_means(Alone()) == {"kd_loss": 2.0, "outlier_loss": 3.0, "info_loss": 4.0}
    log.add(outputs(7.0, 8.0, 9.0))
    assert log.pop_means(Alone()) == {"kd_loss": 7.0, "outlier_loss": 8.0, "info_loss": 9.0}
