"""Metrics of a trained student, or of a teacher, at the places of the teacher's artifacts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from singer_hf.artifacts.attention import AttentionCapture
from singer_hf.artifacts.outliers import token_norms
from singer_hf.artifacts.places import MIN_PLACES, artifact_places, mean_by_place, place_metrics, resize_places
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


def student_place_metrics(
    distiller: FeatureDistiller, teacher: nn.Module, clean: nn.Module | None, batches: Sequence[Tensor]
) -> dict[str, float | None]:
    """Metrics of the student of the last distilled pair of blocks at the artifact places of the teacher.

    Args:
        distiller: The trained distiller.
        teacher: The teacher as it was before the method changed it.
        clean: The unplanted teacher, if there is one.
        batches: Images (B, 3, H, W) normalised for the student.

    Returns:
        The metrics of :func:`singer_hf.artifacts.places.place_metrics`, ``class_attention``
        (:func:`class_attention`) and, with an unplanted teacher of the distilled teacher's width and grid,
        ``cosine_artifacts`` and ``cosine_elsewhere``: mean cosine of the projected tokens to the unplanted teacher's
        tokens, normalised like the targets. Empty if the teacher has fewer than 10 artifact places.
    """
    pair, extractor = distiller.pairs[-1], distiller.student_extractor
    with evaluation_mode(distiller):
        inputs = [distiller.teacher_input(batch) for batch in batches]
        places, grid = find_places(teacher, pair.teacher, inputs)
        if int(places.sum()) < MIN_PLACES:
            return {}
        features = [extractor(batch) for batch in batches]
        tokens = [split_tokens(part[pair.student], extractor.num_class_tokens)[1].cpu() for part in features]
        own = resize_places(places, grid, pair.grid)
        metrics = place_metrics(torch.cat(tokens), own)
        if (view := getattr(extractor, "view", None)) is not None:
            metrics["class_attention"] = class_attention(view, pair.student, batches, own)
        if clean is not None and grid == distiller.teacher_input.grid:
            metrics |= _cosines(distiller, clean, inputs, features, places)
    return metrics


def teacher_place_metrics(
    model: nn.Module, teacher: nn.Module, batches: Sequence[Tensor], teacher_batches: Sequence[Tensor]
) -> dict[str, float | None]:
    """The metrics of :func:`student_place_metrics` for a teacher itself after its last block, without the cosines.

    The unplanted teacher's values are those of a perfectly clean model at the same places.

    Args:
        model: The measured teacher.
        teacher: The teacher whose artifact places are meant.
        batches: Images (B, 3, H, W) normalised for ``model``.
        teacher_batches: The same images normalised for ``teacher``.
    """
    view, block = view_vit(model), view_vit(teacher).num_blocks - 1
    places, grid = find_places(teacher, block, teacher_batches)
    if int(places.sum()) < MIN_PLACES:
        return {}
    last, own = view.num_blocks - 1, resize_places(places, grid, view.grid(*batches[0].shape[-2:]))
    metrics = place_metrics(torch.cat([tokens.cpu() for tokens in _patch_tokens(model, last, batches)]), own)
    return metrics | {"class_attention": class_attention(view, last, batches, own)}


def find_places(teacher: nn.Module, block: int, batches: Sequence[Tensor]) -> tuple[Tensor, tuple[int, int]]:
    """Returns the artifact places of a teacher's raw tokens, bool (M, N), and its patch grid (rows, columns).

    Args:
        teacher: The teacher.
        block: 0-based index of the block after which they are measured.
        batches: Images (B, 3, H, W) normalised for the teacher, M in all.
    """
    norms = torch.cat([token_norms(tokens).cpu() for tokens in _patch_tokens(teacher, block, batches)])
    return artifact_places(norms), view_vit(teacher).grid(*batches[0].shape[-2:])


def class_attention(view: ViTView, block: int, batches: Sequence[Tensor], places: Tensor) -> float | None:
    """Returns the share of the class token's attention that artifact places receive over their share of the patches.

    Both shares are means over the images with artifact places; 1 means that the class token does not prefer them.

    Args:
        view: View of the model.
        block: 0-based index of the block whose attention is measured.
        batches: Images (B, 3, H, W) normalised for the model.
        places: Artifact places, bool (M, N).

    Returns:
        The ratio, >= 0; None if the attention is not plain or there is no class token.
    """
    shares, capture = [], FeatureCapture(view, [block])
    with evaluation_mode(view.backbone), AttentionCapture(view) as attention:
        attention.check(batches[0][:1])
        for batch, mask in zip(batches, places.split([len(batch) for batch in batches]), strict=True):
            capture(batch)
            shares.append(attention.received_from_class(block, mask.to(batch.device)))
            attention.clear()
    if shares[0] is None:
        return None
    uniform = places[places.any(1)].double().mean()
    return float(torch.cat(shares).cpu().double().mean() / uniform)


def _patch_tokens(model: nn.Module, block: int, batches: Sequence[Tensor]) -> list[Tensor]:
    """Returns the raw patch tokens (B, N, D) of a teacher after a block, by batch."""
    return [split_tokens(tokens, view_vit(model).num_prefix_tokens)[1] for tokens in _tokens(model, block, batches)]


def _tokens(model: nn.Module, block: int, batches: Sequence[Tensor]) -> list[Tensor]:
    view = view_vit(model)
    capture, weight = FeatureCapture(view, [block]), view.patch_embedding.weight
    with evaluation_mode(model), raw_features(find_singer_layers(model).values()):
        return [capture(batch.to(weight.device, weight.dtype)).outputs[block] for batch in batches]


def _cosines(
    distiller: FeatureDistiller,
    clean: nn.Module,
    inputs: Sequence[Tensor],
    features: Sequence[dict[int, Tensor]],
    places: Tensor,
) -> dict[str, float | None]:
    pair, view, common = distiller.pairs[-1], view_vit(clean), distiller.num_common_class_tokens
    width, grid = distiller.teacher_view.hidden_size, view.grid(*inputs[0].shape[-2:])
    if view.hidden_size != width or grid != distiller.teacher_input.grid:
        return {}
    cosines = []
    for tokens, student in zip(_tokens(clean, pair.teacher, inputs), features, strict=True):
        target = distiller.normalize_targets({pair.teacher: tokens})[pair.teacher][:, view.num_prefix_tokens :]
        projected = distiller.project(pair, student)[:, common:]
        cosines.append(F.cosine_similarity(projected.float(), target.float(), dim=-1).cpu())
    means = mean_by_place(torch.cat(cosines), places)
    return dict(zip(("cosine_artifacts", "cosine_elsewhere"), means, strict=True))
