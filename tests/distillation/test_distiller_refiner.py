"""Another clean-up than an adapter: what is distilled then, what is not, and what such a run leaves behind."""

import math
import re
from pathlib import Path

import planted
import pytest
import torch
import transformers as hf
from peft import get_peft_model
from runs import make_trainer
from torch.nn import functional as F
from zoo import images, tiny_vit

from singer_hf import SingerConfig
from singer_hf.baselines.cleanups.clip_norm import ClipNorm, ClipNormMethod
from singer_hf.baselines.cleanups.neighbor_mean import NeighborMean
from singer_hf.baselines.fitnet import FitNet
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.vit.features import capture_features

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

IMAGES = planted.planted_images(batch=2)
RULE = ClipNorm(1)
CLASH = (
    "`teacher` must have no SiNGER adapters for FeatureDistiller, it has some after blocks [1, 3]; remove them or use "
    "SingerDistiller"
)


class Halves:
    """A clean-up of one's own."""

    def refine(self, hidden_states):
        return hidden_states / 2


def small_student():
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = hf.ViTConfig(**sizes, image_size=planted.IMAGE, patch_size=planted.PATCH)
    return hf.ViTModel(config, add_pooling_layer=False)


def make(refiner=RULE, **settings):
    """Its targets are in the teacher's own units."""
    torch.manual_seed(0)
    settings = {"teacher_layers": [1, 3], "target_norm": "none", **settings}
    return FeatureDistiller(small_student(), planted.planted_vit(), refiners=refiner, **settings).train()


def clipped(block):
    """Tokens (25, 32) behind a block: the class token of norm 3 along channel 0, then the patches.

    Their norms are 3 but for the long ones with sqrt(40² + 3²). Median 3, MAD 0: the threshold is 3 + 10 * 0.3 = 6.
    """
    patches = planted.expected_tokens(block)
    long = patches[:, planted.DIRECTION] > 0
    patches[long] *= 6 / math.sqrt(40**2 + 3**2)
    prefix = torch.zeros(1, planted.WIDTH, dtype=torch.float64)
    prefix[0, 0] = 3
    return torch.cat([prefix, patches]).float()


def refuse(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_the_targets_are_the_clipped_tokens():
    distiller = make()
    refined = distiller.refine(distiller.teacher_features(IMAGES).outputs)
    assert sorted(refined) == [1, 3]
    for block, tokens in refined.items():
        torch.testing.assert_close(tokens, clipped(block).expand(2, -1, -1), rtol=1e-4, atol=1e-4)
    assert clipped(1).norm(dim=1).max().item() == pytest.approx(6)


def test_the_loss_is_the_distance_to_the_clipped_tokens_alone():
    distiller = make(kd_weight=2.0)
    output = distiller(IMAGES)
    student = capture_features(distiller.student, IMAGES, [1, 2])
    assert distiller.student_layers == [1, 2]
    pairs = ((1, 1), (3, 2))
    expected = sum(
        F.mse_loss(distiller.projectors[str(i)](student[j]), clipped(i).expand(2, -1, -1)) for i, j in pairs
    )
    torch.testing.assert_close(output.kd_loss, expected / 2, rtol=1e-4, atol=1e-5)
    assert set(output.components) == {"kd_loss"}
    torch.testing.assert_close(output.loss, 2 * output.kd_loss)


def test_it_differs_from_the_bare_teachers_loss():
    losses = [make(refiner)(IMAGES).kd_loss.item() for refiner in (None, RULE, NeighborMean(1, planted.GRID))]
    assert losses[0] > 2 * max(losses[1:])
    assert losses[1] != losses[2]


def test_any_object_that_refines_will_do():
    distiller = make(Halves())
    raw = distiller.teacher_features(IMAGES).outputs
    refined = distiller.refine(raw)
    assert all(torch.equal(refined[i], raw[i] / 2) for i in (1, 3))


def test_student_and_projectors_are_trained_and_nothing_else():
    distiller = make()
    distiller(IMAGES).loss.backward()
    assert not any(parameter.requires_grad for parameter in distiller.teacher.parameters())
    assert all(parameter.grad is not None for parameter in distiller.projectors.parameters())
    assert (distiller.refiners, distiller.singer_layers) == ({1: RULE, 3: RULE}, {})


def test_the_summary_names_the_clean_up_method():
    summary = ClipNormMethod(quantile=0.9).summarize(make(ClipNorm(1, quantile=0.9))).splitlines()
    assert summary[0] == (
        "method: multi-layer feature distillation, targets refined by "
        "ClipNorm(num_prefix_tokens=1, quantile=0.9, rule=None, scope='image')"
    )
    assert not any("adapter after" in line for line in summary)
    bare = FitNet().summarize(make(None)).splitlines()
    assert bare[0] == "method: multi-layer feature distillation (FitNet), no refinement"


def test_a_teacher_with_adapters_is_refused():
    teacher = get_peft_model(tiny_vit(), SingerConfig(r=4, layers_to_transform=[1, 3]))
    with refuse(CLASH):
        FeatureDistiller(tiny_vit(), teacher, refiners=RULE)


def test_what_cannot_refine_is_refused():
    with refuse("`refiners` must have a method refine(hidden_states), got str"):
        make("clip_norm")


def test_the_trainer_refuses_it_beside_an_adapter(tmp_path):
    with refuse(CLASH):
        make_trainer(tmp_path, method=ClipNormMethod(), teacher_layers=[1, 3])


def test_a_run_leaves_the_student_and_no_adapter(tmp_path):
    trainer = make_trainer(tmp_path, bare=True, method=ClipNormMethod(quantile=0.5), max_steps=2)
    trainer.train()
    trainer.save_model()
    assert not [path for path in Path(tmp_path).rglob("*") if path.name in ("singer", "adapter_config.json")]
    assert (tmp_path / "projectors" / "model.safetensors").is_file()
    student = hf.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    student.eval()
    own = trainer.student.eval()
    with torch.no_grad():
        expected = own(images()).last_hidden_state
        assert torch.equal(student(images()).last_hidden_state, expected)


def test_a_run_logs_what_the_clean_up_does(tmp_path):
    trainer = make_trainer(tmp_path, bare=True, method=ClipNormMethod(quantile=0.5), max_steps=1)
    trainer.train()
    (row,) = (row for row in trainer.state.log_history if "kd_loss" in row)
    assert row["loss"] == pytest.approx(row["kd_loss"], rel=1e-4)
    assert not {"outlier_loss", "info_loss"} & set(row)
    assert 1 <= row["refined_outlier_ratio"] < row["teacher_outlier_ratio"]
    assert row["adapter_leakage"] > 0
