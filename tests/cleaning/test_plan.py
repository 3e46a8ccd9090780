"""Where the adapters of a cleaned teacher stand."""

from dataclasses import replace

import pytest
from planted import planted_images, planted_vit
from zoo import images, tiny_vit

from singer_hf import SingerConfig
from singer_hf.cleaning.plan import plan_cleaning
from singer_hf.inspection.measure.audit import audit


@pytest.fixture(scope="module")
def result():
    return audit(planted_vit(), [planted_images(8)], name="teacher", progress=False)


def test_the_adapter_stands_behind_the_block_in_which_the_outliers_begin(result):
    plan = plan_cleaning(result)
    assert plan.blocks == (1,)
    assert plan.reasons == (
        "teacher: outliers begin after block 1: 12 % of the patches, with a mean norm of 13.4 times the median of "
        "their image.",
        "Adapters behind block 1, so that no later block reads outliers.",
    )


def test_the_configuration_keeps_its_other_fields(result):
    config = SingerConfig(r=3, init_seed=5)
    planned = plan_cleaning(result).configure(config)
    assert (planned.r, planned.init_seed, planned.layers_to_transform) == (3, 5, [1])
    assert config.layers_to_transform is None


def grown(result, share=1.0, strength=1.0):
    """The audit with more or longer outliers from block 2 on than in block 1."""
    begin = result.blocks[1]
    later = [
        replace(
            block,
            outlier_share=share * begin.outlier_share,
            outlier_strength=strength * begin.outlier_strength,
            norm_quantiles=begin.norm_quantiles,
        )
        for block in result.blocks[2:]
    ]
    return replace(result, blocks=[*result.blocks[:2], *later])


@pytest.mark.parametrize(
    ("growth", "blocks"),
    [({"share": 1.4}, (1,)), ({"share": 1.6}, (1, 2)), ({"strength": 1.4}, (1,)), ({"strength": 1.6}, (1, 2))],
)
def test_outliers_that_grow_get_another_adapter(result, growth, blocks):
    assert plan_cleaning(grown(result, **growth)).blocks == blocks


def test_growth_is_said(result):
    assert plan_cleaning(grown(result, share=2.0)).reasons[1:] == (
        "They grow again after block 2: 25 % of the patches, with a mean norm of 13.4 times the median of their "
        "image.",
        "Adapters behind blocks 1, 2, so that no later block reads outliers.",
    )


def test_a_teacher_without_artifacts_gets_no_adapter():
    plan = plan_cleaning(audit(tiny_vit(), [images()], name="clean", progress=False))
    assert plan.blocks == ()
    assert plan.reasons == (
        "clean shows no high-norm artifacts on these images. There is nothing to clean: the teacher stays as it is.",
    )


def test_the_configuration_overrides_the_choice(result):
    plan = plan_cleaning(result, SingerConfig(layers_to_transform=[0, -3]))
    assert plan.blocks == (0, 1)
    assert plan.reasons[-1] == "Adapters behind blocks 0, 1, as configured."


def test_a_late_block_is_taken_with_a_warning(result):
    message = (
        r"`layers_to_transform` begins with block 3, and the outliers begin after block 1: attention in the blocks "
        r"between has already read them; take 1, or leave it out"
    )
    with pytest.warns(UserWarning, match=message):
        assert plan_cleaning(result, SingerConfig(layers_to_transform=[-1])).blocks == (3,)


def test_a_block_that_does_not_exist_is_refused(result):
    with pytest.raises(ValueError, match="`layers_to_transform`"):
        plan_cleaning(result, SingerConfig(layers_to_transform=[4]))
