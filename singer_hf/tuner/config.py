"""Configuration of the SiNGER adapter."""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from peft import PeftConfig

from singer_hf.tuner.nullspace_sources import NULLSPACE_SOURCES
from singer_hf.vit.block_indices import default_layers, resolve_layers

INIT_WEIGHTS = ("nullspace", "reference", "random", "identity")

# Made anew for every model, or of use only while an adapter is created: not part of what is saved.
_NOT_SAVED = ("target_modules", "exclude_modules", "calibration_images")


class SingerPeftType(StrEnum):
    """PEFT's own enum cannot be extended; a string enum of the same form serves transformers and PEFT alike."""

    SINGER = "SINGER"


@dataclass
class SingerConfig(PeftConfig):
    """A low-rank refinement of the patch tokens behind chosen blocks of a ViT (SiNGER, arXiv 2509.20986).

    ``F̂ = F + (F Φ_down) Φ_up`` on patch tokens; prefix tokens pass untouched. With ``init_weights="nullspace"`` the
    map is NOT the identity at the start: it adds ``init_scale`` times the tokens' component in the null space.

    Args:
        r: Rank of the adapter, from 1 to the teacher's hidden size.
        layers_to_transform: 0-based indices of the blocks whose outputs are refined; negative ones count from the
            end. None: ``[round(0.75 L) - 1, L - 1]`` for L blocks. Attaching resolves and saving keeps plain indices.
        init_weights: ``"nullspace"``: Φ_down = Ñ, Φ_up = ``init_scale`` Ñᵀ, Ñ the r directions that the next block
            reads least. ``"reference"``: the released code's choice, see :func:`singer_hf.tuner.nullspace.reference_basis`.
            ``"random"``: the same with a random orthonormal Ñ. ``"identity"``: Φ_down as in ``"nullspace"``, Φ_up = 0.
        nullspace_source: What counts as reading, see :func:`singer_hf.tuner.nullspace_sources.source_gram`: ``"mlp"`` (paper), ``"block"``
            or ``"jacobian"``. ``"reference"`` knows ``"mlp"`` only.
        init_scale: Factor on Φ_up at the start; -1 removes the null-space component instead of doubling it.
        null_threshold: Absolute singular value, > 0, below which a direction counts as not read. None: 0.05 for
            ``"reference"`` (as released), 0.05 times the largest singular value otherwise. Chooses the directions
            of ``"reference"``; for the others it only decides when a warning says that r is too large.
        num_prefix_tokens: Class, distillation and register tokens in front of the patches. None: read off the model.
        exclude_modules: Names (or one regular expression) of blocks to leave out, as in other PEFT methods.
        calibration_images: Iterable of batches of pixel values (B, 3, H, W), or one batch, normalised for the teacher,
            for ``nullspace_source="jacobian"``. Never saved.
        init_seed: Seed of random directions and probes.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    r: int = field(default=64, metadata={"help": "Rank of the adapter, 1 to the teacher's hidden size."})
    layers_to_transform: list[int] | None = field(
        default=None,
        metadata={"help": "0-based refined blocks, negatives allowed. Default: round(0.75 L) - 1 and L - 1."},
    )
    init_weights: str = field(default="nullspace", metadata={"help": f"One of {', '.join(INIT_WEIGHTS)}."})
    nullspace_source: str = field(default="mlp", metadata={"help": f"One of {', '.join(NULLSPACE_SOURCES)}."})
    init_scale: float = field(default=1.0, metadata={"help": "Factor on the up projection at the start."})
    null_threshold: float | None = field(
        default=None, metadata={"help": "Absolute singular value below which a direction counts as not read, > 0."}
    )
    num_prefix_tokens: int | None = field(
        default=None, metadata={"help": "Tokens before the patches. Default: read off the model."}
    )
    exclude_modules: list[str] | None = field(default=None, metadata={"help": "Blocks to leave out, by name."})
    calibration_images: Any = field(
        default=None, repr=False, metadata={"help": 'Pixel values for `nullspace_source="jacobian"`; never saved.'}
    )
    init_seed: int = field(default=0, metadata={"help": "Seed of random directions and probes."})
    target_modules: list[str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SingerPeftType.SINGER
        # Saved configurations say `inference_mode: true`; their weights come from a file even if trained on.
        self.restores_weights = self.inference_mode
        if isinstance(self.layers_to_transform, int) and not isinstance(self.layers_to_transform, bool):
            self.layers_to_transform = [self.layers_to_transform]
        _check_choice("init_weights", self.init_weights, INIT_WEIGHTS)
        _check_choice("nullspace_source", self.nullspace_source, NULLSPACE_SOURCES)
        self._check_numbers()
        self._check_layers()

    def _check_numbers(self) -> None:
        if not _is_index(self.r) or self.r < 1:
            raise ValueError(f"`r` must be an integer of at least 1, got {self.r!r}")
        if self.null_threshold is not None and not self.null_threshold > 0:
            raise ValueError(f"`null_threshold` must be greater than 0, got {self.null_threshold!r}")
        count = self.num_prefix_tokens
        if count is not None and not (_is_index(count) and count >= 0):
            raise ValueError(f"`num_prefix_tokens` must be an integer of at least 0, got {count!r}")
        if self.init_weights == "reference" and self.nullspace_source != "mlp":
            raise ValueError(
                '`nullspace_source` must be "mlp" with `init_weights="reference"`, the released code knows no other; '
                f"got {self.nullspace_source!r}"
            )

    def _check_layers(self) -> None:
        layers = self.layers_to_transform
        if layers is None:
            return
        if not isinstance(layers, list | tuple | set) or not all(map(_is_index, layers)):
            raise ValueError(f"`layers_to_transform` must be a list of integers, got {layers!r}")
        if not layers:
            raise ValueError(
                "`layers_to_transform` must name at least one block, got []; leave it out for the default"
            )
        self.layers_to_transform = list(layers)

    def resolve_layers(self, num_blocks: int) -> list[int]:
        """The refined blocks of a model with ``num_blocks`` blocks as sorted indices from 0.

        Raises:
            ValueError: If an index is out of range or names a block twice.
        """
        if self.layers_to_transform is None:
            return default_layers(num_blocks)
        return sorted(resolve_layers("layers_to_transform", self.layers_to_transform, num_blocks))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is saved: block indices and prefix count, no module paths and no images."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _NOT_SAVED}


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
