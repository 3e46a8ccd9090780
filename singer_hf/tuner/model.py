"""The SiNGER tuner: which blocks get an adapter, its initial weights, and how saved weights find their blocks."""

import re
import warnings
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import Tensor, nn

from singer_hf.tuner.config import SingerConfig
from singer_hf.tuner.layer import SingerLayer, find_singer_layers, named_singer_layers, raw_features
from singer_hf.tuner.nullspace import NULL_TOLERANCE, RELEASED_THRESHOLD, Spectrum, random_basis, reference_basis
from singer_hf.tuner.nullspace_sources import linearized_mlp, source_gram
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

_ADAPTER_KEY = re.compile(r"(?:^|\.)(\d+)\.(singer_down|singer_up)\.weight$")


class SingerModel(BaseTuner):
    """Wraps the chosen blocks of a vision transformer in :class:`SingerLayer`.

    Args:
        model: Any vision transformer supported by :func:`singer_hf.vit.structure.view_vit`.
        config: A :class:`SingerConfig`.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Create the adapter on the meta device; its weights must then be loaded.

    Example:
        >>> from peft import get_peft_model
        >>> from singer_hf import SingerConfig
        >>> peft_teacher = get_peft_model(teacher, SingerConfig(r=64))
        >>> peft_teacher.base_model.singer_layers
    """

    prefix: str = "singer_"
    tuner_layer_cls = SingerLayer
    target_module_mapping: dict = {}  # noqa: RUF012 (PEFT declares it so)

    @property
    def singer_layers(self) -> dict[int, SingerLayer]:
        """The wrapped blocks of all adapters by their 0-based index."""
        return find_singer_layers(self.model)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds the adapter ``adapter_name`` of ``self.peft_config`` to the model.

        Args:
            model: The model.
            adapter_name: Name of the adapter.
            *args: Further arguments of PEFT's method.
            **kwargs: Further keyword arguments of PEFT's method.

        Raises:
            ValueError: If the name could be mistaken for a part of the keys under which adapters are saved.
        """
        _check_adapter_name(adapter_name, self.prefix, view_vit(model).blocks_path)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: SingerConfig, model_config: dict) -> PeftConfig:
        view = view_vit(self.model)
        if peft_config.r > view.hidden_size:
            raise ValueError(f"`r` must be at most the hidden size {view.hidden_size}, got {peft_config.r}")
        layers = peft_config.resolve_layers(view.num_blocks)
        names = {i: view.block_name(i) for i in layers}
        peft_config.target_modules = list(names.values())
        # For a targeted name PEFT's check only fails if `exclude_modules` matches it.
        peft_config.layers_to_transform = [i for i in layers if check_target_module_exists(peft_config, names[i])]
        if peft_config.num_prefix_tokens is None:
            peft_config.num_prefix_tokens = view.num_prefix_tokens
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> Any:
        return check_target_module_exists(peft_config, key) if key in peft_config.target_modules else False

    def _create_and_replace(
        self,
        peft_config: SingerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        view = view_vit(self.model)
        layer = target if isinstance(target, SingerLayer) else SingerLayer(target, view.hidden_size)
        with raw_features(self.singer_layers.values()):
            down, up = _initial_weights(peft_config, view, int(target_name), next(target.parameters()).is_meta)
        layer.update_layer(adapter_name, down, up, peft_config.num_prefix_tokens, peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.singer_down[adapter_name].requires_grad_(False)
            layer.singer_up[adapter_name].requires_grad_(False)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own version looks for `.weight`, which a block does not have.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        next(iter(self.singer_layers.values())).merge()

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Finds the blocks by index, so that an adapter also fits a model with another head or other module paths."""
        expected = {
            (index, kind): f"{name}.{kind}.{adapter_name}.weight"
            for name, index, layer in named_singer_layers(model)
            for kind in cls.tuner_layer_cls.adapter_layer_names
            if adapter_name in getattr(layer, kind)
        }
        found = {_parse_key(key): value for key, value in state_dict.items()}
        _check_keys(set(expected), set(found))
        remapped = {expected[key]: value for key, value in found.items()}
        own_shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if name in remapped}
        for name, shape in own_shapes.items():
            if shape != tuple(remapped[name].shape):
                raise ValueError(
                    f"the adapter does not fit this model: {name} has shape {tuple(remapped[name].shape)} in the file "
                    f"and {shape} here; it was trained on a teacher of another hidden size"
                )
        return remapped


def _check_adapter_name(name: str, prefix: str, blocks_path: str) -> None:
    path_parts = ("base_model", "model", *blocks_path.split("."), "weight")  # PEFT finds adapters by parts of keys
    if name.isdigit() or "." in name or name in prefix or name.startswith(prefix) or name in path_parts:
        raise ValueError(
            f"`adapter_name` must not be a number, contain a dot, be a part of {prefix!r} or start with it, or be one "
            f"of {', '.join(map(repr, path_parts))}, got {name!r}; such names break the matching of saved keys"
        )


def _parse_key(key: str) -> tuple[int, str]:
    match = _ADAPTER_KEY.search(key)
    if match is None:
        raise ValueError(f"{key!r} in the adapter file is not a weight of a SiNGER adapter")
    return int(match[1]), match[2]


def _check_keys(expected: set[tuple[int, str]], found: set[tuple[int, str]]) -> None:
    for problem, keys in (("misses", expected - found), ("has surplus", found - expected)):
        if keys:
            names = ", ".join(f"block {index} {kind}" for index, kind in sorted(keys))
            raise ValueError(
                f"the adapter file {problem} weights for this model and its configuration: {names}. The file and "
                "adapter_config.json must come from the same adapter"
            )


def _initial_weights(config: SingerConfig, view: ViTView, index: int, is_meta: bool) -> tuple[Tensor, Tensor]:
    """Initial Φ_down (D, r) and Φ_up (r, D) of the adapter after block ``index``."""
    if is_meta or config.inference_mode or config.restores_weights:
        # The weights are loaded from a file later; until then the adapter is the identity.
        zeros = torch.zeros(view.hidden_size, config.r)
        return zeros, zeros.T
    basis = _initial_basis(config, view, index).float()
    scale = 0.0 if config.init_weights == "identity" else config.init_scale
    return basis, scale * basis.T


def _initial_basis(config: SingerConfig, view: ViTView, index: int) -> Tensor:
    generator = torch.Generator().manual_seed(config.init_seed + index)
    if config.init_weights == "random":
        return random_basis(view.hidden_size, config.r, generator)
    if config.init_weights == "reference":
        threshold = config.null_threshold or RELEASED_THRESHOLD
        weight = linearized_mlp(view, view.next_block(index))
        return reference_basis(weight, config.r, threshold, generator)
    gram = source_gram(view, index, config.nullspace_source, config.calibration_images, generator)
    spectrum = Spectrum.of_gram(gram)
    _warn_if_rank_exceeds_null_space(config, spectrum, index)
    return spectrum.smallest(config.r)


def _warn_if_rank_exceeds_null_space(config: SingerConfig, spectrum: Spectrum, index: int) -> None:
    if config.null_threshold is None:
        dimension = spectrum.effective_null_dimension()
        rule = f"{NULL_TOLERANCE} times the largest singular value"
    else:
        dimension = int((spectrum.singular_values < config.null_threshold).sum())
        rule = f"the `null_threshold` {config.null_threshold}"
    if config.r > dimension:
        warnings.warn(
            f"block {index}: `r` = {config.r} exceeds the effective null dimension {dimension} (singular values of "
            f'`nullspace_source="{config.nullspace_source}"` below {rule}), so the initial adapter also changes what '
            "the next block computes; lower `r`",
            stacklevel=2,
        )


def attach_adapter(teacher: nn.Module, config: SingerConfig | None) -> nn.Module:
    """Attaches a new adapter to the teacher; returns the teacher unchanged if ``config`` is None.

    Raises:
        ValueError: If a configuration is given for a teacher that already has SiNGER adapters.
    """
    if config is None:
        return teacher
    if find_singer_layers(teacher):
        raise ValueError("`peft_config` must be left out for a teacher that already has a SiNGER adapter")
    return get_peft_model(teacher, config)
