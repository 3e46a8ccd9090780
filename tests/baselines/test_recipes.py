"""Named settings: what they are, and that each is a field that something takes."""

import inspect
from dataclasses import fields

import pytest

from singer_hf import SingerConfig, SingerDistiller, SingerTrainingArguments
from singer_hf.baselines.recipes import RECIPES, recipe_settings
from singer_hf.distillation.feature_distiller import FeatureDistiller

PAPER = {
    "init_weights": "nullspace",
    "nullspace_source": "mlp",
    "init_scale": 1.0,
    "gate": "none",
    "kd_weight": 1.0,
    "kd_loss": "mse",
    "target_norm": "none",
    "outlier_weight": 0.01,
    "outlier_loss": "absolute",
    "outlier_quantile": 0.97,
    "info_weight": 1.0,
    "info_loss": "gram",
    "info_share": 1.0,
    "detach_refined": False,
}
# The only place in the tests that repeats the recommended values.
RECOMMENDED = {
    "init_weights": "nullspace",
    "nullspace_source": "mlp",
    "init_scale": 0.0,
    "gate": "outlier",
    "kd_weight": 1.0,
    "kd_loss": "mse",
    "target_norm": "channel_token",
    "outlier_weight": 1.0,
    "outlier_loss": "neighbors",
    "outlier_quantile": 0.97,
    "info_weight": 1.0,
    "info_loss": "gram",
    "info_share": 0.25,
    "detach_refined": True,
}
ADAPTER = {item.name for item in fields(SingerConfig)}
OBJECTIVE = {item.name for item in fields(SingerTrainingArguments)}


def test_the_papers_settings_are_the_published_ones():
    assert recipe_settings("paper") == PAPER


def test_the_references_settings_are_the_released_codes():
    assert recipe_settings("reference") == {
        **PAPER,
        "init_weights": "reference",
        "null_threshold": 0.05,
        "info_loss": "reference",
    }


def test_the_recommended_settings_are_those_of_the_docs():
    assert recipe_settings("recommended") == RECOMMENDED


@pytest.mark.parametrize("name", ["paper", "reference", "recommended"])
def test_every_setting_is_a_field_and_in_range(name, tmp_path):
    settings = recipe_settings(name)
    assert set(settings) <= ADAPTER | OBJECTIVE
    assert set(PAPER) <= set(settings)
    SingerConfig(**{key: value for key, value in settings.items() if key in ADAPTER})
    objective = {key: value for key, value in settings.items() if key in OBJECTIVE}
    SingerTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **objective)


def test_the_recommended_settings_are_the_defaults_of_adapter_and_arguments(tmp_path):
    adapter, args = SingerConfig(), SingerTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    defaults = {name: getattr(adapter if name in ADAPTER else args, name) for name in RECOMMENDED}
    assert defaults == recipe_settings("recommended")


@pytest.mark.parametrize("distiller", [FeatureDistiller, SingerDistiller])
def test_the_recommended_settings_are_the_defaults_of_the_distillers(distiller):
    recommended, defaults = recipe_settings("recommended"), inspect.signature(distiller).parameters
    shared = {name: defaults[name].default for name in recommended if name in defaults}
    assert shared == {name: recommended[name] for name in shared}
    own = OBJECTIVE - inspect.signature(FeatureDistiller).parameters.keys()
    assert set(shared) == set(recommended) & (own if distiller is SingerDistiller else OBJECTIVE - own)


def test_there_are_three_recipes_and_the_rank_is_in_none():
    assert set(RECIPES) == {"paper", "reference", "recommended"}
    assert not any("r" in settings or "layers_to_transform" in settings for settings in RECIPES.values())


def test_what_is_handed_out_can_be_changed():
    recipe_settings("paper")["init_scale"] = 5.0
    assert recipe_settings("paper") == PAPER


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match="`recipe`") as error:
        recipe_settings("best")
    assert str(error.value) == "`recipe` must be one of 'paper', 'reference', 'recommended', got 'best'"
