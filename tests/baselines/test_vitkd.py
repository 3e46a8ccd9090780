"""ViTKD as a distiller: its two terms written out by hand, its masks, what it trains, saves, resumes and refuses."""

import re
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from runs import differing, image_dataset, make_resumable, make_trainer, small_student, snapshot
from safetensors.torch import load_file
from torch.nn import functional as F
from zoo import SIZES, images, tiny, tiny_vit

from singer_hf import SingerConfig
from singer_hf.baselines.vitkd import ViTKD, ViTKDDistiller
from singer_hf.inspection.measure.feature_comparison import load_projectors
from singer_hf.training.guards.finite import non_finite_component
from singer_hf.vit.features import capture_features

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def narrow_student(num_blocks=5):
    torch.manual_seed(1)
    sizes = {**SIZES, "hidden_size": 16, "num_hidden_layers": num_blocks, "intermediate_size": 32}
    return hf.ViTModel(hf.ViTConfig(**sizes), add_pooling_layer=False)


def make(student=None, teacher=None, **settings):
    """In eval mode, with a mask token that is not 0."""
    torch.manual_seed(0)
    student, teacher = student or narrow_student(), teacher or tiny_vit()
    own = {name: settings.pop(name) for name in ViTKD.setting_names() if name in settings}
    distiller = ViTKDDistiller(student, teacher, ViTKD(**own), **settings)
    torch.nn.init.normal_(distiller.generator.mask_token)
    return distiller.eval()


def vitkd_run(output_dir, **options):
    model = options.pop("model", None) or small_student(num_hidden_layers=3)
    own = {name: options.pop(name) for name in ViTKD.setting_names() if name in options}
    return make_trainer(output_dir, bare=True, model=model, method=ViTKD(**own), num_artifact_images=2, **options)


def written_out(distiller, pixel_values, grid=(4, 4)):
    """Squared errors of the mimicked blocks, and those of the generated block, (B, N, D), for a ViT student."""
    student = capture_features(distiller.student, pixel_values, range(5))
    teacher = capture_features(distiller.teacher, pixel_values, range(4))
    prefix, projectors = distiller.teacher_view.num_prefix_tokens, distiller.projectors
    patches = student[4][:, 1:]
    own = {0: student[0], 1: student[1]} if prefix else {0: student[0][:, 1:], 1: student[1][:, 1:]}
    mimicked = [(projectors[str(i)](own[i]) - teacher[i]).square() for i in (0, 1)]
    generator, mask = distiller.generator, distiller.evaluation_mask[0]
    replaced = projectors["3"](patches).clone()
    replaced[:, mask] = generator.mask_token
    hidden = F.conv2d(replaced.mT.unflatten(2, grid), generator.conv_in.weight, generator.conv_in.bias, padding=1)
    generated = F.conv2d(hidden.relu(), generator.conv_out.weight, generator.conv_out.bias, padding=1)
    return mimicked, (generated.flatten(2).mT - teacher[3][:, prefix:]).square()


def test_both_terms_are_the_methods_equations():
    """Blocks 0 and 1 are mimicked with all tokens, the last one is generated from the student's last patches."""
    distiller, pixel_values = make(kd_weight=2.0, generation_weight=3.0), images()
    assert (distiller.teacher_layers, distiller.student_layers) == ([0, 1, 3], [0, 1, 4])
    output = distiller(pixel_values)
    mimicked, generated = written_out(distiller, pixel_values)
    torch.testing.assert_close(output.kd_loss, (mimicked[0].mean() + mimicked[1].mean()) / 2)
    torch.testing.assert_close(output.generation_loss, generated[:, distiller.evaluation_mask[0]].mean())
    torch.testing.assert_close(output.loss, 2 * output.kd_loss + 3 * output.generation_loss)
    assert set(output.components) == {"kd_loss", "generation_loss"}


def test_weights_by_patches_and_width_give_the_published_sums():
    """α / B x the sum over the mimicked blocks and β / (λB) x the sum over the masked patches; no class token."""
    alpha, beta, number = 3e-5, 3e-6, 16 * 32
    weights = {"kd_weight": 2 * alpha * number, "generation_weight": beta * number}
    distiller, pixel_values = make(teacher=tiny("siglip"), **weights), images(batch=3)
    mimicked, generated = written_out(distiller, pixel_values)
    sums = alpha / 3 * (mimicked[0].sum() + mimicked[1].sum())
    sums = sums + beta / (0.5 * 3) * generated[:, distiller.evaluation_mask[0]].sum()
    torch.testing.assert_close(distiller(pixel_values).loss, sums)


def test_the_default_weights_have_the_published_ratio():
    distiller = make()
    assert distiller.settings.generation_weight / distiller.kd_weight == pytest.approx(3e-6 / (2 * 3e-5))


def test_maps_of_another_grid_are_interpolated():
    """A CNN's stem and stages, 8 x 8 and 4 x 4, for a teacher of 4 x 4 patches."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1]}
    cnn = hf.ResNetModel(hf.ResNetConfig(**sizes)).eval()
    distiller, pixel_values = make(student=cnn, image_size=(32, 32)), images()
    assert distiller.pairs[0].grid != distiller.teacher_input.grid
    maps = cnn(pixel_values, output_hidden_states=True).hidden_states
    teacher = capture_features(distiller.teacher, distiller.teacher_input(pixel_values), range(4))
    errors = []
    for i, j in ((0, 0), (1, 1)):
        resized = F.interpolate(maps[j], distiller.teacher_input.grid, mode="bilinear", antialias=True)
        errors.append((distiller.projectors[str(i)](resized.flatten(2).mT) - teacher[i][:, 1:]).square().mean())
    output = distiller(pixel_values)
    torch.testing.assert_close(output.kd_loss, sum(errors) / 2)
    assert output.generation_loss.isfinite()


def test_training_draws_new_masks_and_evaluation_has_one_for_every_image():
    distiller, pixel_values = make(), images(batch=3)
    state = torch.get_rng_state()
    whole = distiller(pixel_values).generation_loss
    single = [distiller(image[None]).generation_loss for image in pixel_values]
    torch.testing.assert_close(whole, sum(single) / 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(make().evaluation_mask, distiller.evaluation_mask)
    distiller.train()
    assert distiller(pixel_values).generation_loss != distiller(pixel_values).generation_loss


def test_losses_are_float32_under_autocast():
    distiller = make().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = distiller(images())
    output.loss.backward()
    assert output.generation_loss.dtype == output.kd_loss.dtype == torch.float32
    assert distiller.generator.mask_token.grad.abs().sum() > 0


def test_the_layers_can_be_chosen():
    distiller = make(teacher_layers=[-2, 0])
    assert (distiller.teacher_layers, distiller.student_layers) == ([0, 2], [0, 4])
    assert distiller(images()).loss.isfinite()


def test_the_plan_names_the_method():
    plan = ViTKD(mask_ratio=0.25).summarize(make(mask_ratio=0.25)).splitlines()
    assert plan[0] == (
        "method: ViTKD, no refinement: teacher blocks [0, 1] mimicked, block 3 generated with 4 of 16 patches masked"
    )
    assert plan[4:7] == [
        "  student block 0 -> teacher block 0: projector 16 -> 32",
        "  student block 1 -> teacher block 1: projector 16 -> 32",
        "  student block 4 -> teacher block 3: projector 16 -> 32",
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vitkd")
    trainer = vitkd_run(folder, weight_decay=0.0, max_steps=2, eval_dataset=image_dataset(8))
    before = snapshot(trainer.distiller)
    trainer.train()
    return SimpleNamespace(trainer=trainer, folder=folder, before=before, metrics=trainer.evaluate())


def test_a_run_trains_student_projectors_generator_and_mask_token_and_no_teacher_weight(run):
    """The final norm of the student is behind what is distilled."""
    assert isinstance(run.trainer.distiller, ViTKDDistiller)
    untouched = set(run.before) - differing(run.before, snapshot(run.trainer.distiller))
    student = {"student.layernorm.weight", "student.layernorm.bias"}
    assert untouched == student | {name for name in run.before if name.startswith("teacher.")}
    assert "generator.mask_token" in run.before


def test_a_run_logs_the_generation_term(run):
    rows = [row for row in run.trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    for logged in rows:
        assert logged["loss"] == pytest.approx(logged["kd_loss"] + 0.05 * logged["generation_loss"], rel=1e-5)
        assert logged["generation_loss"] > 0
    assert run.metrics["eval_generation_loss"] == run.trainer.evaluate()["eval_generation_loss"] > 0


def test_a_generation_term_that_is_not_finite_is_named():
    distiller = make()
    assert non_finite_component(distiller(images())) is None
    torch.nn.init.constant_(distiller.generator.mask_token, float("nan"))
    assert non_finite_component(distiller(images())) == "generation_loss"


def test_projectors_and_generator_are_saved_in_folders_of_their_own(run):
    folder, distiller = run.folder / "checkpoint-2", run.trainer.distiller
    for name, module in (("projectors", distiller.projectors), ("generator", distiller.generator)):
        saved = load_file(folder / name / "model.safetensors")
        assert differing(saved, snapshot(module)) == set()
    assert list(load_projectors(folder / "projectors" / "model.safetensors")) == ["0", "1", "3"]


def test_a_resumed_run_equals_a_straight_one(tmp_path):
    def make_run(folder):
        student = small_student(num_hidden_layers=3, **DROPOUT)
        return make_resumable(tmp_path / folder, bare=True, model=student, max_steps=4, method=ViTKD())

    straight, resumed = make_run("straight"), make_run("resumed")
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert differing(snapshot(resumed.distiller), snapshot(straight.distiller)) == set()
    losses = [
        [row["generation_loss"] for row in run.state.log_history if "loss" in row] for run in (straight, resumed)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_settings_reach_the_distiller(tmp_path):
    distiller = vitkd_run(tmp_path, mask_ratio=0.75, generation_weight=2.0, kd_weight=3.0).distiller
    assert (distiller.settings.mask_ratio, distiller.settings.generation_weight, distiller.kd_weight) == (
        0.75,
        2.0,
        3.0,
    )
    assert distiller.evaluation_mask.sum() == 3  # of 2 x 2 patches


def adapted():
    return get_peft_model(tiny_vit(), SingerConfig(r=4, layers_to_transform=[1, 3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, "`mask_ratio` must lie in (0, 1), got 0.0"),
        ({"mask_ratio": 1.0}, "`mask_ratio` must lie in (0, 1), got 1.0"),
        ({"generation_weight": -0.5}, "`generation_weight` must be at least 0, got -0.5"),
        ({"kd_weight": -1.0}, "`kd_weight` must be at least 0, got -1.0"),
        (
            {"teacher": adapted},
            "`teacher` must have no SiNGER adapters for ViTKDDistiller, it has some after blocks [1, 3]; remove "
            "them or use SingerDistiller",
        ),
        (
            {"teacher": lambda: tiny_vit(2)},
            "`teacher` must have at least 3 blocks for ViTKD, two to mimic and the last to generate, got 2; name its "
            "blocks with `teacher_layers`",
        ),
        (
            {"teacher_layers": [-1]},
            "`teacher_layers` must name at least two blocks for ViTKD, the deepest to generate and the others to "
            "mimic, got [-1]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    settings = {name: value() if callable(value) else value for name, value in settings.items()}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**settings)
