"""Features of a few images, from which the maps of a report are drawn."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import token_norms
from singer_hf.data.pictures import to_pictures
from singer_hf.tuner.layer import find_singer_layers, flowing_tokens, raw_features
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens


@dataclass(frozen=True)
class Snapshot:
    """Features of one model on K images with N patches, float32 on the CPU.

    Attributes:
        name: Name of the model in figures.
        images: The images without normalisation, (K, H, W, 3), in [0, 1].
        grid: (rows, columns) of patches.
        norms: L2 norms of the patch tokens after every block, before the final norm, (L, K, N).
        features: Patch tokens after the last block, before the final norm, (K, N, D).
        refined_norms: Block index -> norms (K, N) of the refined tokens, for every block with a SiNGER adapter.
        refined_features: Refined patch tokens after the last block, (K, N, D); None without an adapter at that block.
    """

    name: str
    images: Tensor
    grid: tuple[int, int]
    norms: Tensor
    features: Tensor
    refined_norms: dict[int, Tensor] = field(default_factory=dict)
    refined_features: Tensor | None = None


def take_snapshot(
    model: nn.Module,
    pixel_values: Tensor,
    *,
    name: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    inline: bool = False,
) -> Snapshot:
    """Runs a model once and returns the patch norms of all blocks and the patch tokens of the last one.

    Args:
        model: A vision transformer, with or without SiNGER adapters; both raw and refined features are captured.
        pixel_values: A few images (K, 3, H, W), normalised for the model.
        name: Name of the model in figures; its class by default.
        mean: Per-channel mean with which the images were normalised. Without ``mean`` and ``std`` every image is
            scaled to its own range.
        std: Per-channel standard deviation.
        inline: Whether adapters stay active, as in :func:`singer_hf.inspection.measure.audit.audit`.
    """
    view, found = view_vit(model), find_singer_layers(model)
    layers, flowing = ({}, found) if inline else (found, {})
    capture, weight = FeatureCapture(view, range(view.num_blocks)), view.patch_embedding.weight
    with evaluation_mode(model), raw_features(layers.values()):
        outputs = flowing_tokens(flowing, capture(pixel_values.to(weight.device, weight.dtype)).outputs)
        refined = {i: layer.refine(outputs[i]) for i, layer in layers.items()}
    patches = [_patches(outputs[i], view.num_prefix_tokens) for i in range(view.num_blocks)]
    refined = {i: _patches(tokens, view.num_prefix_tokens) for i, tokens in sorted(refined.items())}
    return Snapshot(
        name=name or type(view.backbone).__name__,
        images=to_pictures(pixel_values, mean, std),
        grid=view.grid(*pixel_values.shape[-2:]),
        norms=torch.stack([token_norms(tokens) for tokens in patches]),
        features=patches[-1],
        refined_norms={i: token_norms(tokens) for i, tokens in refined.items()},
        refined_features=refined.get(view.num_blocks - 1),
    )


def _patches(tokens: Tensor, num_prefix_tokens: int) -> Tensor:
    return split_tokens(tokens, num_prefix_tokens)[1].float().cpu()
