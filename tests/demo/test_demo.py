"""The demo's two students: what they are trained by, and what is refused."""

import json

import pytest

from singer_hf.baselines.recipes import recipe_settings
from singer_hf.demo.run import DemoSettings, run_demo

FEW = {"num_train_images": 64, "num_test_images": 32, "num_epochs": 1, "batch_size": 32}


@pytest.mark.parametrize(("settings", "recipe"), [({}, "recommended"), ({"recipe": "paper"}, "paper")])
def test_the_singer_student_follows_the_recipe(tmp_path, capsys, settings, recipe):
    rows = run_demo(DemoSettings(output_dir=str(tmp_path), **FEW, **settings))
    assert list(rows) == ["teacher", "refined teacher", "FitNet student", "SiNGER student"]
    adapter = json.loads((tmp_path / "singer/singer/adapter_config.json").read_text())
    expected = recipe_settings(recipe)
    assert [adapter[name] for name in ("init_scale", "gate", "r")] == [expected["init_scale"], expected["gate"], 24]
    card = (tmp_path / "singer/README.md").read_text()
    assert f"| `outlier_loss` | `{expected['outlier_loss']}` |" in card
    # FitNet's student learns by the same distance to the targets.
    objectives = [json.loads((tmp_path / name / "training_args.json").read_text()) for name in ("fitnet", "singer")]
    assert [args["target_norm"] for args in objectives] == [expected["target_norm"]] * 2
    assert "| Data | drawn scenes |" in card
    assert "distilled from the demo teacher (planted artifacts) with SiNGER" in card
    # The card holds what the probe measured.
    top1 = rows["SiNGER student"]["probe_top1"]
    assert f"| classification | drawn scenes | linear_probe_top1 | {top1:.4g} |  | 32 |" in card
    assert "not evaluated" not in card
    printed = capsys.readouterr().out
    assert "SYNTHETIC" in printed
    assert f"with SiNGER (recipe: {recipe})" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"demo.png", "fitnet", "singer"}


def test_a_recipe_that_is_not_there_is_refused_before_anything_is_done(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"^`recipe` must be one of 'paper', 'reference', 'recommended', got 'best'$"):
        run_demo(DemoSettings(output_dir=str(tmp_path / "out"), recipe="best"))
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()
