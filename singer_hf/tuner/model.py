"""The SiNGER tuner: which blocks get an adapter, its initial weights, and how saved weights find their blocks."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import Tensor, nn

from singer_hf.tuner.checks import check_adapter_name, check_fits, check_no_other_adapters
from singer_hf.tuner.config import SingerConfig
from singer_hf.tuner.initial_weights import initial_weights
from singer_hf.tuner.layer import (
    SingerLayer,
    find_singer_layers,
    named_singer_layers,
    raw_features,
    refuse_merging,
)
from singer_hf.vit.structure import view_vit

_ADAPTER_KEY = re.compile(r"(?:^|\.)(\d+)\.(singer_(?:down|up)\.weight|singer_gate\.\w+)$")


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

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        check_no_other_adapters(model)  # first, as PEFT's own method changes the model before it looks at it
        super().__init__(model, *args, **kwargs)

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
            ValueError: If the model already has adapters of PEFT inside, or the name could be mistaken for a part of
                the keys under which adapters are saved.
        """
        check_no_other_adapters(model)
        check_adapter_name(adapter_name, self.prefix, view_vit(model).blocks_path)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: SingerConfig, model_config: dict) -> PeftConfig:
        """A copy with what depends on the model: PEFT keeps the user's own object, which may serve several models."""
        view = view_vit(self.model)
        check_fits(peft_config, view)
        layers = peft_config.resolve_layers(view.num_blocks)
        names = {i: view.block_name(i) for i in layers}
        resolved = copy.copy(peft_config)
        resolved.r = peft_config.resolve_rank(view.hidden_size)
        resolved.target_modules = list(names.values())
        # For a targeted name PEFT's check only fails if `exclude_modules` matches it.
        resolved.layers_to_transform = [i for i in layers if check_target_module_exists(resolved, names[i])]
        if resolved.num_prefix_tokens is None:
            resolved.num_prefix_tokens = view.num_prefix_tokens
        return resolved

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
            down, up = initial_weights(peft_config, view, int(target_name), next(target.parameters()).is_meta)
        layer.update_layer(
            adapter_name, down, up, peft_config.num_prefix_tokens, peft_config.inference_mode, peft_config.gate
        )
        layer.base_model_name[adapter_name] = peft_config.base_model_name_or_path
        if adapter_name not in self.active_adapters:
            layer.singer_down[adapter_name].requires_grad_(False)
            layer.singer_up[adapter_name].requires_grad_(False)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own version looks for `.weight`, which a block does not have.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        refuse_merging()

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "SiNGER adapters cannot be combined by `add_weighted_adapter`. Activate several at once with "
            "`peft_model.base_model.set_adapter([...])`: their refinements add up"
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT removes these arguments from every forward call, also for methods that do not use them.
        for name in ("adapter_names", "alora_offsets"):
            if kwargs.get(name) is not None:
                raise NotImplementedError(
                    f"`{name}` is not supported by SiNGER, whose active adapters refine the whole batch: leave it out "
                    "and choose the adapter with `set_adapter()`"
                )
        yield

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keeps the adapter in float32, in which it was made; otherwise it gets the type of its block."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for layer in self.singer_layers.values():
                layer.cast_to_block(adapter_name)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        # PEFT and transformers ask for the weights right before they save the configuration, which knows no model.
        config.prepare_saving(adapter_name, adapter_settings(model, adapter_name))
        return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Finds the blocks by index, so that an adapter also fits a model with another head or other module paths.

        Weights of the model itself, such as those of ``save_embedding_layers=True``, are loaded as they are.
        """
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        prefix = "" if isinstance(model, PeftModel) else "base_model.model."
        untouched = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) in own}
        expected = {
            (index, f"{kind}.{tensor}"): f"{name}.{kind}.{adapter_name}.{tensor}"
            for name, index, layer in named_singer_layers(model)
            for kind in cls.tuner_layer_cls.adapter_layer_names
            if adapter_name in getattr(layer, kind)
            for tensor in getattr(layer, kind)[adapter_name].state_dict()
        }
        found = {_parse_key(key): value for key, value in state_dict.items() if key not in untouched}
        _check_keys(set(expected), set(found))
        remapped = {expected[key]: value for key, value in found.items()}
        for name in remapped:
            shape = tuple(own[name].shape)
            if shape != tuple(remapped[name].shape):
                raise ValueError(
                    f"the adapter does not fit this model: {name} has shape {tuple(remapped[name].shape)} in the file "
                    f"and {shape} here; it was trained on a teacher of another hidden size"
                )
        return {**untouched, **remapped}


def adapter_settings(model: nn.Module, adapter_name: str = "default") -> dict[str, Any]:
    """Fields of SingerConfig as they hold for one adapter of one model, which determined those left open.

    Args:
        model: A model with SiNGER adapters.
        adapter_name: Name of the adapter.

    Returns:
        ``r``, ``layers_to_transform``, ``num_prefix_tokens`` and ``base_model_name_or_path``, for the last one only
        if it is known; empty if the model does not have the adapter.
    """
    layers = {i: layer for i, layer in find_singer_layers(model).items() if adapter_name in layer.singer_down}
    if not layers:
        return {}
    first = next(iter(layers.values()))
    name = first.base_model_name.get(adapter_name)
    return {
        "r": first.singer_down[adapter_name].out_features,
        "layers_to_transform": sorted(layers),
        "num_prefix_tokens": first.num_prefix_tokens[adapter_name],
        **({"base_model_name_or_path": name} if name else {}),
    }


def _parse_key(key: str) -> tuple[int, str]:
    match = _ADAPTER_KEY.search(key)
    if match is None:
        raise ValueError(f"{key!r} in the adapter file is not a tensor of a SiNGER adapter")
    return int(match[1]), match[2]


def _check_keys(expected: set[tuple[int, str]], found: set[tuple[int, str]]) -> None:
    for problem, keys in (("misses", expected - found), ("has surplus", found - expected)):
        if keys:
            names = ", ".join(f"block {index} {kind.removesuffix('.weight')}" for index, kind in sorted(keys))
            raise ValueError(
                f"the adapter file {problem} weights for this model and its configuration: {names}. The file and "
                "adapter_config.json must come from the same adapter"
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
