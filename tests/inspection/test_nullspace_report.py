import pytest
import torch
from planted import LENGTH, expected_tokens, planted_adapter, planted_images
from torch.nn import functional as F
from zoo import images, tiny_vit

from singer_hf.inspection.measure.nullspace_report import report_nullspace


@pytest.mark.filterwarnings("ignore:block .*exceeds the effective null dimension")
def test_the_null_space_report_measures_what_the_adapter_does():
    report = report_nullspace(planted_adapter(), [planted_images(2)], source="mlp")
    first, last = report["blocks"]
    tokens = expected_tokens(1)
    assert first["refinement"] == pytest.approx(float(3**0.5 * LENGTH / tokens.norm()), rel=1e-4)
    # Patches that are not outliers do not change.
    assert [first[f"{name}_others"] for name in ("refinement", "next_output", "next_write")] == [0.0, 0.0, 0.0]
    # Block 2 changes the fleeting token only; its unit is more active without channel 7 in the norm.
    fleeting = expected_tokens(1)[23].float()
    weight = torch.zeros(32)
    weight[2] = 100.0
    raw, refined = (
        F.gelu(F.layer_norm(token, (32,)) @ weight - 10.0)
        for token in (fleeting, fleeting.where(fleeting < LENGTH, torch.zeros(())))
    )
    assert first["next_write"] == pytest.approx(float(refined / raw) - 1, rel=1e-4)
    assert (last["next_output"], last["next_write"], last["leakage"]) == (None, None, None)
    # Only the weights of channel 2 in block 2's MLP are not 0.
    assert first["singular_values"][:31] == pytest.approx([0.0] * 31, abs=1e-5)
    assert (first["up"]["e_prob"], first["down"]["e_prob"]) == (pytest.approx(0.0), pytest.approx(0.0))
    assert report["final"]["logits"] is None
    assert report["final"]["features"] > 0.9
    assert report["final"]["features_others"] < 1e-6


def test_a_model_without_adapter_has_no_null_space_report():
    message = "`model` must have a SiNGER adapter, got ViTModel without one"
    with pytest.raises(ValueError, match=message):
        report_nullspace(tiny_vit(), [images()])
