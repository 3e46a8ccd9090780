"""The initial weights of an adapter."""

import warnings

import torch
from torch import Tensor

from singer_hf.tuner.config import SingerConfig
from singer_hf.tuner.nullspace import NULL_TOLERANCE, RELEASED_THRESHOLD, Spectrum, random_basis, reference_basis
from singer_hf.tuner.nullspace_sources import linearized_mlp, source_gram
from singer_hf.vit.view import ViTView


def initial_weights(config: SingerConfig, view: ViTView, index: int, is_meta: bool) -> tuple[Tensor, Tensor]:
    """Initial Φ_down (D, r) and Φ_up (r, D) of the adapter after block ``index``.

    Args:
        config: The configuration.
        view: View of the teacher.
        index: 0-based index of the block.
        is_meta: Whether the block is on the meta device.
    """
    if is_meta or config.inference_mode or config.restores_weights:
        # The weights are loaded from a file later; until then the adapter is the identity, and can be trained.
        return torch.eye(view.hidden_size, config.r), torch.zeros(config.r, view.hidden_size)
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
    if config.init_weights != "identity" and config.init_scale:  # else the initial adapter changes nothing
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
