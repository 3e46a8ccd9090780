"""Which student block learns from which teacher block."""

from collections.abc import Sequence
from typing import NamedTuple

from singer_hf.vit.block_indices import resolve_layers


class BlockPair(NamedTuple):
    """A distilled teacher block and the student block that learns from it.

    Attributes:
        teacher: 0-based index of the teacher block.
        student: 0-based index of the student block.
        grid: (rows, columns) of the student's patch tokens after that block.
    """

    teacher: int
    student: int
    grid: tuple[int, int]


def pair_student_layers(
    teacher_layers: Sequence[int], num_teacher_blocks: int, num_student_blocks: int, given: Sequence[int] | None = None
) -> list[int]:
    """Returns the student block for each distilled teacher block, ascending and one-to-one.

    By default a teacher block l is paired with the student block of the same relative depth ``l / (L_T - 1)``, and the
    last distilled block with the student's last block, so that every student block is trained.

    Args:
        teacher_layers: Distilled teacher blocks, ascending.
        num_teacher_blocks: L_T.
        num_student_blocks: L_S.
        given: The user's choice, one student block per distilled teacher block.

    Raises:
        ValueError: If the student has too few blocks, or the choice has another length, repeats a block or is out of
            range.
    """
    if len(teacher_layers) > num_student_blocks:
        raise ValueError(
            f"the student has {num_student_blocks} blocks, fewer than the {len(teacher_layers)} distilled teacher "
            f"blocks {list(teacher_layers)}; distil fewer of them (`layers_to_transform`)"
        )
    if given is not None:
        if len(given) != len(teacher_layers):
            raise ValueError(
                f"`student_layers` must name one student block for each of the {len(teacher_layers)} distilled "
                f"teacher blocks {list(teacher_layers)}, got {list(given)}"
            )
        return resolve_layers("student_layers", given, num_student_blocks)
    scale = (num_student_blocks - 1) / max(num_teacher_blocks - 1, 1)
    layers = [round(index * scale) for index in teacher_layers]
    return _one_to_one(layers, num_student_blocks)


def _one_to_one(layers: list[int], num_blocks: int) -> list[int]:
    """Ends at the last block; moves duplicates down, then up where they would fall below block 0."""
    paired, above = [], num_blocks
    for index in [*layers[:-1], num_blocks - 1][::-1]:
        above = min(index, above - 1)
        paired.append(above)
    paired.reverse()
    return [max(index, place) for place, index in enumerate(paired)]
