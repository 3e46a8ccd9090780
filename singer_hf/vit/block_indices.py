"""Block indices: the default ones, negative ones, and their checks."""

from collections.abc import Sequence


def default_layers(num_blocks: int) -> list[int]:
    """The default distilled blocks of a teacher with L blocks: ``[round(0.75 L) - 1, L - 1]`` (ViT-L: 17, 23)."""
    return sorted({max(round(0.75 * num_blocks) - 1, 0), num_blocks - 1})


def resolve_layers(name: str, layers: Sequence[int], num_blocks: int) -> list[int]:
    """Resolves negative block indices, which count from the end; the order is kept.

    Args:
        name: Name of the argument, for error messages.
        layers: Block indices from -L to L - 1.
        num_blocks: Number L of blocks of the model.

    Raises:
        ValueError: If an index is not an integer or out of range, or two indices name the same block.
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
