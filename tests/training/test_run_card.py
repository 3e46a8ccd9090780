"""The card of a run: which method it names, which settings and losses it shows."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from runs import make_trainer, small_student
from torch import Tensor
from zoo import tiny_vit

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.clip_norm import ClipNorm
from singer_hf.cards.student_card import student_card
from singer_hf.training.run_card import card_info

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def info_of(tmp_path, **options):
    return card_info(make_trainer(tmp_path, **options), tmp_path)


def vitkd_info(tmp_path, **options):
    return info_of(tmp_path, bare=True, model=small_student(num_hidden_layers=3), distillation="vitkd", **options)


def own_settings(info) -> dict:
    """The settings of the objective that the card shows."""
    names = ("distillation", "mask_ratio", "generation_weight", "outlier_weight", "info_loss")
    return {name: info.settings[name] for name in names if name in info.settings}


def test_a_run_of_vitkd_says_so(tmp_path):
    card = student_card(vitkd_info(tmp_path))
    assert "was distilled from a `ViTModel` with ViTKD ([paper](https://arxiv.org/abs/2209.02432)): the " in card.text
    assert card.data.tags[-1] == "vitkd"
    assert "FitNet" not in card.text
    assert "| `distillation` | `vitkd` |" in card.text


@pytest.mark.parametrize(
    ("bare", "tag", "sentence"),
    [
        (False, "singer", " with SiNGER ([paper]"),
        (True, "fitnet", " by matching features of several blocks (FitNet):"),
    ],
)
def test_runs_with_and_without_an_adapter_keep_their_names(tmp_path, bare, tag, sentence):
    info = info_of(tmp_path, bare=bare)
    assert info.method is None
    assert sentence in student_card(info).text
    assert student_card(info).data.tags[-1] == tag


@dataclass(frozen=True)
class Halving:
    """A clean-up with settings of every kind that a card may have to say, or not."""

    image: Tensor
    strength: float = 1.0
    name: str | None = None

    def refine(self, hidden_states: Tensor) -> Tensor:
        return hidden_states / 2


@pytest.mark.parametrize(
    ("refiner", "words"),
    [
        (ClipNorm(1), "`ClipNorm` (`num_prefix_tokens` 1)."),
        (ClipNorm(1, quantile=0.95), "`ClipNorm` (`num_prefix_tokens` 1, `quantile` 0.95)."),
        (ClipNorm(1, rule=OutlierRule()), "`ClipNorm` (`num_prefix_tokens` 1, `rule` `OutlierRule`)."),
        (
            ClipNorm(1, rule=OutlierRule(5.0)),
            "`ClipNorm` (`num_prefix_tokens` 1, `rule` `OutlierRule` (`mad_factor` 5.0)).",
        ),
        (Halving(Tensor([1, 2]), 0.5), "`Halving` (`strength` 0.5)."),
        (SimpleNamespace(refine=lambda hidden_states: hidden_states), "`SimpleNamespace`."),
    ],
)
def test_a_clean_up_is_named_with_its_settings(tmp_path, refiner, words):
    card = student_card(info_of(tmp_path, bare=True, refiner=refiner))
    assert (
        "by matching features of several blocks: the student learned the teacher's features, whose tokens of very "
        f"high norm were cleaned by {words}"
    ) in card.text
    assert card.data.tags[-1] == "feature-distillation"


def test_settings_are_shown_where_they_matter(tmp_path):
    given = {"mask_ratio": 0.75, "generation_weight": 0.5, "outlier_weight": 0.1, "info_loss": "reference"}
    vitkd = {"distillation": "vitkd", "mask_ratio": 0.75, "generation_weight": 0.5}
    assert own_settings(vitkd_info(tmp_path, **given)) == vitkd
    assert own_settings(info_of(tmp_path, **given)) == {"outlier_weight": 0.1, "info_loss": "reference"}
    assert own_settings(info_of(tmp_path, bare=True, **given)) == {}
    assert own_settings(vitkd_info(tmp_path)) == {"distillation": "vitkd"}


def test_the_loss_table_has_the_generation_term_where_there_is_one(tmp_path):
    row = {"step": 1, "loss": 3.0, "kd_loss": 2.0, "outlier_loss": 0.0, "info_loss": 0.0, "learning_rate": 0.1}
    trainer = make_trainer(tmp_path, teacher_model=tiny_vit())
    trainer.state.log_history = [row, row | {"step": 2, "generation_loss": 20.0}]
    curve = card_info(trainer, tmp_path).loss_curve
    assert [list(point) for point in curve] == [
        ["step", "loss", "kd_loss", "outlier_loss", "info_loss"],
        ["step", "loss", "kd_loss", "outlier_loss", "info_loss", "generation_loss"],
    ]
    assert curve[1]["generation_loss"] == 20.0
