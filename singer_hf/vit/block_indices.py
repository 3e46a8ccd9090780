"""Block indices as users give them: defaults, negative indices, checks."""

from collections.abc import Sequence


def default_layers(num_blocks: int) -> list[int]:
    """The distilled blocks of a teacher with ``num_blocks`` blocks: ``[round(0.75 L) - 1, L - 1]`` (ViT-L: 17, 23)."""
    return sorted({max(round(0.75 * num_blocks) - 1, 0), num_blocks - 1})


def resolve_layers(name: str, layers: Sequence[int], num_blocks: int) -> list[int]:
    """Turns block indices, negatives counting from the end, into plain ones, in the order given.

    Args:
        name: The argument's name, for messages.
        layers: Block indices.
        num_blocks: Number of blocks of the model.

    Raises:
        ValueError: If an index is no integer, out of range, or names a block twice.
    """
    for index in layers:
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"`{name}` must be a list of integers, got {layers!r}")
        if not -num_blocks <= index < num_blocks:
            raise ValueError(
                f"`{name}` must lie in [{-num_blocks}, {num_blocks - 1}] for a model of {num_blocks} blocks, "
                f"got {index}"
            )
    resolved = [index % num_blocks for index in layers]
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"`{name}` must name each block once, got {list(layers)}")
    return resolved
