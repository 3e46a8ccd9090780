"""Which student block learns from which teacher block."""

from itertools import combinations

import pytest

from singer_hf.distillation.block_pairs import pair_student_layers
from singer_hf.vit.block_indices import default_layers, resolve_layers


@pytest.mark.parametrize(("blocks", "layers"), [(24, [17, 23]), (12, [8, 11]), (6, [3, 5]), (2, [1]), (1, [0])])
def test_default_layers_are_at_three_quarters_and_at_the_end(blocks, layers):
    assert default_layers(blocks) == layers


def test_negative_indices_count_from_the_end_and_the_order_stays():
    assert resolve_layers("teacher_layers", [-1, 0, 5], 12) == [11, 0, 5]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([12], r"`x` must lie in \[-12, 11\] for a model of 12 blocks, got 12"),
        ([-13], r"`x` must lie in \[-12, 11\] for a model of 12 blocks, got -13"),
        ([0, -12], r"`x` must name each block once, got \[0, -12\]"),
        ([1.0], r"`x` must be a list of integers, got \[1.0\]"),
        ([True], r"`x` must be a list of integers, got \[True\]"),
    ],
)
def test_wrong_indices_are_refused(layers, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        resolve_layers("x", layers, 12)


@pytest.mark.parametrize(
    ("teacher_layers", "teacher_blocks", "student_blocks", "expected"),
    [
        ([17, 23], 24, 12, [8, 11]),  # 17 / 23 of the way: 8.13
        ([5, 11], 12, 12, [5, 11]),  # the released code trains 5 and 10 and leaves block 11 untrained
        ([3, 5], 6, 4, [2, 3]),
        ([22, 23], 24, 12, [10, 11]),  # both would be 11: the earlier one gives way
        ([0, 1, 2], 24, 3, [0, 1, 2]),  # all would be 0: the later ones give way
        ([5], 12, 6, [5]),  # a single one always trains the whole student
        ([0], 1, 1, [0]),
        ([2, 5], 6, 24, [9, 23]),  # deeper than the teacher
    ],
)
def test_blocks_pair_by_relative_depth_and_end_at_the_last(teacher_layers, teacher_blocks, student_blocks, expected):
    assert pair_student_layers(teacher_layers, teacher_blocks, student_blocks) == expected


@pytest.mark.parametrize("teacher_blocks", [1, 2, 5, 7])
@pytest.mark.parametrize("student_blocks", [1, 2, 3, 6])
def test_every_pairing_is_ascending_one_to_one_and_ends_at_the_last_block(teacher_blocks, student_blocks):
    for number in range(1, min(teacher_blocks, student_blocks) + 1):
        for layers in combinations(range(teacher_blocks), number):
            paired = pair_student_layers(layers, teacher_blocks, student_blocks)
            assert paired == sorted(set(paired))
            assert len(paired) == number
            assert paired[0] >= 0
            assert paired[-1] == student_blocks - 1


def test_a_given_pairing_is_kept():
    assert pair_student_layers([5, 11], 12, 12, given=[5, 10]) == [5, 10]
    assert pair_student_layers([5, 11], 12, 4, given=[0, -1]) == [0, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [3],
            r"`student_layers` must name one student block for each of the 2 distilled teacher blocks \[5, 11\], "
            r"got \[3\]",
        ),
        ([1, 1], r"`student_layers` must name each block once, got \[1, 1\]"),
        ([1, 4], r"`student_layers` must lie in \[-4, 3\] for a model of 4 blocks, got 4"),
    ],
)
def test_a_given_pairing_that_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        pair_student_layers([5, 11], 12, 4, given=given)


def test_a_student_with_too_few_blocks_is_refused():
    message = (
        r"the student has 1 blocks, fewer than the 2 distilled teacher blocks \[5, 11\]; distil fewer of them "
        r"\(`layers_to_transform`\)"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        pair_student_layers([5, 11], 12, 1)
