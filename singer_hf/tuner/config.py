"""Configuration of the SiNGER adapter."""

from dataclasses import InitVar, dataclass, field, fields
from enum import Enum
from typing import Any

from peft import PeftConfig

from singer_hf.cards.adapter_card import LIBRARY_NAME, write_adapter_cards
from singer_hf.tuner.gate import GATES
from singer_hf.tuner.nullspace_sources import NULLSPACE_SOURCES
from singer_hf.vit.block_indices import default_layers, resolve_layers

INIT_WEIGHTS = ("nullspace", "reference", "random", "identity")

# Not saved: set anew for every model, or only used while an adapter is created.
_NOT_SAVED = ("target_modules", "exclude_modules", "calibration_images")


class SingerPeftType(str, Enum):  # noqa: UP042 (PEFT's `get_model_status` needs the `str` of such an enum)
    """The PEFT type of SiNGER; PEFT's own enum cannot be extended, but accepts a string enum of the same form."""

    SINGER = "SINGER"


@dataclass
class SingerConfig(PeftConfig):
    """Configuration of a low-rank refinement of the patch tokens after chosen blocks of a ViT (arXiv 2509.20986).

    ``F̂ = F + g (F Φ_down) Φ_up`` on patch tokens, g the share of the gate; prefix tokens are unchanged. The initial
    map adds ``init_scale`` times the component of each token in the null space: nothing by default.

    A configuration does not change when it is attached and may serve any number of models. What depends on the model
    (block indices, prefix tokens) is read with :func:`singer_hf.tuner.model.adapter_settings`, and is saved with the
    adapter.

    Args:
        r: Rank of the adapter, from 1 to the teacher's hidden size. None: ``min(64, hidden_size // 4)``.
        layers_to_transform: 0-based indices of the blocks whose outputs are refined; negative ones count from the
            end. None: ``[round(0.75 L) - 1, L - 1]`` for L blocks. Of a saved adapter they are plain indices.
        init_weights: Initial weights. ``"nullspace"``: Φ_down = Ñ and Φ_up = ``init_scale`` Ñᵀ, where Ñ holds the r
            directions with the smallest singular values of the null-space source. ``"reference"``: the same with the
            released code's Ñ, see :func:`singer_hf.tuner.nullspace.reference_basis`. ``"random"``: the same with a
            random orthonormal Ñ. ``"identity"``: Φ_down as in ``"nullspace"``, Φ_up = 0.
        nullspace_source: What the null space is computed from: ``"mlp"`` (paper), ``"block"`` or ``"jacobian"``, see
            :func:`singer_hf.tuner.nullspace_sources.source_gram`. ``"reference"`` only supports ``"mlp"``.
        init_scale: Factor on the initial Φ_up; 1 (paper) doubles the null-space component, -1 removes it, 0 starts
            from the identity.
        null_threshold: Absolute singular value, > 0, below which a direction counts as null. None: 0.05 for
            ``"reference"`` (released code), 0.05 times the largest singular value otherwise. It selects the directions
            of ``"reference"``; otherwise it only controls the warning about a too large ``r``.
        gate: ``"none"``: every patch token is refined (paper). ``"outlier"``: only tokens beyond a norm that is
            estimated in training, see :class:`singer_hf.tuner.gate.OutlierGate`; a teacher without outliers passes
            unchanged. None: ``"outlier"``.
        num_prefix_tokens: Number of class, distillation and register tokens before the patches. None: taken from the
            model.
        exclude_modules: Names (or one regular expression) of blocks without an adapter, as in other PEFT methods.
        calibration_images: Iterable of batches of pixel values (B, 3, H, W), or one batch, normalised for the teacher,
            for ``nullspace_source="jacobian"``. Never saved.
        init_seed: Seed of random directions and of the probes of ``"jacobian"``.
        library_name: Set in saved configurations only, where it names the library that a reader needs.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    r: int | None = field(
        default=None,
        metadata={
            "aliases": ["--rank"],
            "help": "Rank of the adapter, 1 to the teacher's hidden size. Default: a quarter of it, at most 64.",
        },
    )
    layers_to_transform: list[int] | None = field(
        default=None,
        metadata={"help": "0-based refined blocks, negatives allowed. Default: round(0.75 L) - 1 and L - 1."},
    )
    init_weights: str = field(default="nullspace", metadata={"help": f"One of {', '.join(INIT_WEIGHTS)}."})
    nullspace_source: str = field(default="mlp", metadata={"help": f"One of {', '.join(NULLSPACE_SOURCES)}."})
    init_scale: float = field(default=0.0, metadata={"help": "Factor on the up projection at the start."})
    null_threshold: float | None = field(
        default=None,
        metadata={"help": "Singular value below which a direction is null. Default: 0.05 of the largest."},
    )
    gate: str | None = field(
        default=None, metadata={"help": f"Which patches are refined: {', '.join(GATES)}. Default: outlier."}
    )
    num_prefix_tokens: int | None = field(
        default=None, metadata={"help": "Tokens before the patches. Default: taken from the model."}
    )
    exclude_modules: list[str] | None = field(default=None, metadata={"help": "Blocks without an adapter, by name."})
    calibration_images: Any = field(
        default=None, repr=False, metadata={"help": 'Pixel values for `nullspace_source="jacobian"`; never saved.'}
    )
    init_seed: int = field(default=0, metadata={"help": "Seed of random directions and probes."})
    target_modules: list[str] | None = field(default=None, init=False, repr=False)
    library_name: InitVar[str | None] = None

    def __post_init__(self, library_name: str | None) -> None:
        super().__post_init__()
        self.peft_type = SingerPeftType.SINGER
        self._starts_frozen, self._is_from_file = self.inference_mode, library_name is not None
        # Set for the duration of saving one adapter, see `prepare_saving`.
        self._adapter_to_save: dict[str, Any] = {}
        self._name_to_save = "default"
        if isinstance(self.layers_to_transform, int) and not isinstance(self.layers_to_transform, bool):
            self.layers_to_transform = [self.layers_to_transform]
        _check_choice("init_weights", self.init_weights, INIT_WEIGHTS)
        _check_choice("nullspace_source", self.nullspace_source, NULLSPACE_SOURCES)
        if self.gate is None:
            self.gate = "outlier" if library_name is None else "none"  # files before version 0.2 have no gate
        _check_choice("gate", self.gate, GATES)
        self._check_numbers()
        self._check_layers()

    def _check_numbers(self) -> None:
        if self.r is not None and (not _is_index(self.r) or self.r < 1):
            raise ValueError(f"`r` must be an integer of at least 1, got {self.r!r}")
        if self.null_threshold is not None and not self.null_threshold > 0:
            raise ValueError(f"`null_threshold` must be greater than 0, got {self.null_threshold!r}")
        count = self.num_prefix_tokens
        if count is not None and not (_is_index(count) and count >= 0):
            raise ValueError(f"`num_prefix_tokens` must be an integer of at least 0, got {count!r}")
        if self.init_weights == "reference" and self.nullspace_source != "mlp":
            raise ValueError(
                '`nullspace_source` must be "mlp" with `init_weights="reference"`, the only source of the released '
                f"code; got {self.nullspace_source!r}"
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
        """Returns the refined blocks of a model with ``num_blocks`` blocks as sorted 0-based indices.

        Raises:
            ValueError: If an index is out of range or names a block twice.
        """
        if self.layers_to_transform is None:
            return default_layers(num_blocks)
        return sorted(resolve_layers("layers_to_transform", self.layers_to_transform, num_blocks))

    def resolve_rank(self, hidden_size: int) -> int:
        """Returns the rank for a teacher of width ``hidden_size``."""
        return max(1, min(64, hidden_size // 4)) if self.r is None else self.r

    @property
    def restores_weights(self) -> bool:
        """Whether the weights of the adapter come from a file: it is the identity until then, without a null space.

        PEFT saves ``inference_mode: true``. The file of transformers' ``save_pretrained`` has no such sign; where it
        has no calibration images, which are never saved, no Jacobian can be computed.
        """
        without_images = self.nullspace_source == "jacobian" and self.calibration_images is None
        return self._starts_frozen or (self._is_from_file and without_images)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields that are saved: no module paths and no images."""
        saved = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _NOT_SAVED}
        return {**saved, **self._adapter_to_save, "library_name": LIBRARY_NAME}

    def prepare_saving(self, adapter_name: str, settings: dict[str, Any]) -> None:
        """Sets what the next :meth:`save_pretrained` writes: a configuration does not know which model is saved.

        Args:
            adapter_name: Name of the adapter.
            settings: Fields of the configuration whose values the adapter's model determined.
        """
        self._adapter_to_save, self._name_to_save = settings, adapter_name

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes ``adapter_config.json`` and a card that says how to load the adapter.

        Args:
            save_directory: The folder.
            **kwargs: Further arguments of PEFT's method.
        """
        try:
            super().save_pretrained(save_directory, **kwargs)
            saved = self.to_dict()
            write_adapter_cards(save_directory, self._name_to_save, saved, saved["base_model_name_or_path"])
        finally:
            self.prepare_saving("default", {})


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
