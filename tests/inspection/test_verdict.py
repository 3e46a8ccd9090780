"""Sentences of the verdict: directions as well as norms, and advice that suits the model."""

from dataclasses import replace

import pytest
import torch
from planted import DIRECTION, LASTING, expected_tokens, planted_adapter, planted_images, planted_vit

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.patch_measurements import measure_batch
from singer_hf.inspection.report.verdict import judge, keeps_direction


@pytest.fixture(scope="module")
def planted():
    return audit(planted_vit(), planted_images(2), name="teacher", progress=False)


@pytest.fixture(scope="module")
def clean(planted):
    return replace(planted, blocks=[planted.blocks[0]] * 4)


def test_patches_that_were_outliers_are_followed_by_direction(planted):
    """The fleeting patch is an outlier in block 1 only; behind it, it lies along channel 2, at right angles."""
    assert [block.former_share for block in planted.blocks] == pytest.approx([0, 0, 1 / 24, 1 / 24])
    assert planted.blocks[0].former_cosine is None
    assert planted.blocks[3].former_cosine == pytest.approx(0, abs=1e-4)
    assert planted.blocks[3].former_cosine_others == pytest.approx(0, abs=1e-4)


def test_shortened_outliers_keep_their_direction_and_replaced_ones_do_not():
    """After an adapter: patches at the places of raw outliers, with norm 3 along the channel of the outliers."""
    raw = torch.stack([expected_tokens(3).float()] * 2)
    shortened = raw.clone()
    shortened[:, list(LASTING)] = torch.nn.functional.one_hot(torch.tensor(DIRECTION), raw.shape[-1]).float() * 3
    seen = OutlierRule().mask(raw.norm(dim=-1))[None]
    measured = measure_batch([shortened], torch.zeros(2, 24), OutlierRule(), seen)
    assert int(measured.outliers.sum()) == 0
    assert measured.former_counts.tolist() == [2 * len(LASTING)]
    assert measured.former_directions[0, DIRECTION] == pytest.approx(2 * len(LASTING))
    assert float(measured.former_directions[0].abs().sum()) == pytest.approx(2 * len(LASTING))


@pytest.mark.parametrize(
    ("share", "cosine", "others", "kept"),
    [(0.01, 0.9, 0.1, True), (0.0001, 0.9, 0.1, False), (0.01, 0.4, 0.1, False), (0.01, 0.9, 0.7, False)],
)
def test_a_direction_is_kept_if_it_is_shared_and_not_everyones(planted, share, cosine, others, kept):
    block = replace(planted.blocks[3], former_share=share, former_cosine=cosine, former_cosine_others=others)
    assert keeps_direction(block) is kept


def test_the_verdict_names_artifacts_that_only_directions_show(planted):
    turned = replace(planted.blocks[3], former_share=0.04, former_cosine=0.91, former_cosine_others=0.12)
    assert judge(replace(planted, blocks=[*planted.blocks[:3], turned])).sentences[-1] == (
        "Directions show more than norms: after block 3, 4 % of the patches have ordinary norms, but were outliers "
        "before and still point the same way (mean cosine to the outliers 0.91, other patches 0.12)."
    )


def test_without_artifacts_by_norm_a_direction_is_that_of_the_content(clean):
    turned = replace(clean.blocks[3], former_share=0.04, former_cosine=0.91, former_cosine_others=0.12)
    verdict = judge(replace(clean, blocks=[*clean.blocks[:3], turned]))
    assert verdict.level == "clean"
    assert not any("Directions" in sentence for sentence in verdict.sentences)


def test_an_adapter_that_only_shortens_is_told_so():
    result = audit(planted_adapter(), planted_images(2), name="teacher", progress=False)
    assert "without turning" not in str(judge(result))
    refined = replace(result.refined[1], former_share=0.08, former_cosine=0.97, former_cosine_others=0.2)
    verdict = judge(replace(result, refined=[result.refined[0], refined]))
    assert verdict.sentences[-1].endswith(
        " It shortens 8 % of the patches without turning them: their mean cosine to the raw outliers is 0.97 (other "
        "patches 0.20)."
    )
    assert verdict.advice == (
        "The adapter shortens the outliers at block 3 and leaves their direction; train it with `--outlier_loss "
        "neighbors`, which turns them too."
    )


def test_a_student_is_compared_with_its_teacher_by_norm_and_direction(planted):
    row = {"inherited": 0.46, "artifact_alignment": 0.89, "other_alignment": 0.37}
    sentence = "46 % of the teacher's outliers are outliers here too"
    assert judge(planted, [row]).sentences[-1] == (
        f"{sentence}. By direction: at the places of these outliers its tokens have a mean cosine of 0.89 among each "
        "other and of 0.37 to other patches; smooth patches are alike without artifacts, too."
    )
    assert judge(planted, [row | {"artifact_alignment": None}]).sentences[-1] == f"{sentence}."


LIKE_THESE = " The verdict holds for images like these."
CLEAN = "`singer-hf clean` trains an adapter that removes the artifacts from the model itself; `singer-hf distill` "
CLEAN += "refines them during a distillation."


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, f"No artifacts: distil plainly (`singer-hf distill --method fitnet`).{LIKE_THESE}"),
        ({"role": "student"}, f"Use the student as it is: it has no artifacts.{LIKE_THESE}"),
        ({"inline": True}, f"Use the cleaned model: no artifacts are left.{LIKE_THESE}"),
    ],
)
def test_the_advice_on_a_model_without_artifacts(clean, changes, advice):
    assert judge(replace(clean, **changes)).advice == advice


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {},
            f"Do not match the raw features of blocks 1, 2 and 3 by MSE. {CLEAN} Without training, `--method "
            "neighbor` replaces them by the mean of ordinary neighbours, and `--method test_time_register` moves them "
            "to a register, as the MLP of block 1 writes them.",
        ),
        (
            {"role": "student"},
            "Do not put an adapter on a student. Distil it again through a SiNGER adapter (`singer-hf distill "
            "--method singer`), or from a cleaned teacher (`singer-hf clean`).",
        ),
        (
            {"inline": True},
            "Artifacts are left at blocks 1, 2 and 3: clean longer (`singer-hf clean --max_steps`) or with an adapter "
            "there.",
        ),
    ],
)
def test_the_advice_on_a_model_with_artifacts(planted, changes, advice):
    assert judge(replace(planted, **changes)).advice == advice


def test_registers_are_named_only_where_an_mlp_writes_the_outliers(planted):
    source = {"block": 1, "part": "attention", "cosine": 0.9}
    blocks = [replace(block, defect_source=source) for block in planted.blocks]
    advice = judge(replace(planted, blocks=blocks)).advice
    assert advice.endswith("Without training, `--method neighbor` replaces them by the mean of ordinary neighbours.")
