"""Comparison of a student with a teacher: similarity of their features and inherited artifacts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from singer_hf.artifacts.outliers import OutlierRule, token_norms
from singer_hf.artifacts.places import MIN_PLACES, artifact_places, place_metrics, resize_places
from singer_hf.artifacts.similarity import GramDistance, LinearCka, OutlierOverlap, PatchCosine
from singer_hf.distillation.block_pairs import pair_student_layers
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.vit.block_indices import default_layers, resolve_layers
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import count_batches, evaluation_mode, pixel_batches
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import map_to_tokens, resize_tokens, split_tokens, tokens_to_map
from singer_hf.vit.view import ViTView

# Images whose tokens are kept for the metrics at artifact places, which need all of them at once.
_PLACE_IMAGES = 250
# Patch tokens (B, N, D) by block, and their grid (rows, columns).
_GridFeatures = tuple[dict[int, Tensor], tuple[int, int]]


def compare_features(
    student: nn.Module,
    teacher: nn.Module,
    images: Iterable,
    *,
    teacher_layers: Sequence[int] | None = None,
    student_layers: Sequence[int] | None = None,
    projectors: Mapping[str, nn.Module] | None = None,
    teacher_input: Callable[[Tensor], Tensor] | None = None,
    rule: OutlierRule | None = None,
    progress: bool = True,
) -> list[dict]:
    """Compares the patch tokens of a student with a teacher's raw ones, block by block, in one pass over the images.

    If the grids differ, the student's feature map is interpolated to the teacher's grid, and its norm map is resized
    by nearest neighbour.

    Args:
        student: Any vision transformer.
        teacher: Any vision transformer; SiNGER adapters in it are bypassed.
        images: Batches of pixel values (B, 3, H, W) normalised for the student, or dicts with ``"pixel_values"``.
        teacher_layers: 0-based blocks of the teacher, negatives allowed; by default as in a distillation.
        student_layers: One block of the student for each; by default at the same relative depth, last to last.
        projectors: ``str(teacher block)`` -> the student's trained projector (``SingerDistiller.projectors``), for the
            patch-wise cosine.
        teacher_input: Converts images for the student to images for the teacher, such as
            :class:`singer_hf.distillation.teacher_input.TeacherInput`; by default both get the same images.
        rule: The outlier rule.
        progress: Whether to show a progress bar.

    Returns:
        For every pair ``teacher_block``, ``student_block``, ``cka``, ``cka_others`` (without the teacher's outliers,
        which dominate the variance), ``gram_distance``, the metrics of
        :class:`~singer_hf.artifacts.similarity.OutlierOverlap`, with a projector those of
        :class:`~singer_hf.artifacts.similarity.PatchCosine`, and those of
        :func:`~singer_hf.artifacts.places.place_metrics` for the student on the first 250 images, or None with fewer
        than 10 artifact places of the teacher.

    Raises:
        ValueError: If there are no images, a model is not a plain vision transformer, or the blocks cannot be paired.
    """
    views = view_vit(student), view_vit(teacher)
    pairs = _pairs(*views, student_layers, teacher_layers)
    metrics = [_PairMetrics(*pair, (projectors or {}).get(str(pair[1])), rule or OutlierRule()) for pair in pairs]
    captures = [FeatureCapture(view, layers) for view, layers in zip(views, zip(*pairs, strict=True), strict=True)]
    seen = 0
    with evaluation_mode(student), evaluation_mode(teacher), raw_features(find_singer_layers(teacher).values()):
        batches = pixel_batches(images)
        for batch in tqdm(batches, "compare", count_batches(images), unit="batch", disable=not progress):
            _compare_batch(batch, captures, metrics, teacher_input)
            seen += len(batch)
    if not seen:
        raise ValueError("`images` must hold at least one image, got none")
    return [pair.result() for pair in metrics]


def load_projectors(path: str | Path) -> dict[str, nn.Linear]:
    """Loads the projectors of a distillation run, saved as ``projectors/model.safetensors`` next to its student.

    The generator of a ViTKD run, saved in the same file, is ignored.

    Returns:
        ``str(teacher block)`` -> linear map from the student's to the teacher's width.

    Raises:
        ValueError: If the file has no linear maps by block.
    """
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("generator.")}
    blocks = {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")}
    if not blocks or not all(block.isdigit() for block in blocks):
        raise ValueError(f"`path` must hold projectors by teacher block, got {sorted(tensors)} in {str(path)!r}")
    projectors = {}
    for block in sorted(blocks, key=int):
        weight, bias = tensors[f"{block}.weight"], tensors.get(f"{block}.bias")
        projectors[block] = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        projectors[block].load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return projectors


def _pairs(
    student: ViTView, teacher: ViTView, student_layers: Sequence[int] | None, teacher_layers: Sequence[int] | None
) -> list[tuple[int, int]]:
    """Returns pairs (student block, teacher block) in the order of the teacher's blocks."""
    chosen = default_layers(teacher.num_blocks) if teacher_layers is None else teacher_layers
    chosen = resolve_layers("teacher_layers", chosen, teacher.num_blocks)
    paired = pair_student_layers(chosen, teacher.num_blocks, student.num_blocks, student_layers)
    return list(zip(paired, chosen, strict=True))


def _compare_batch(
    batch: Tensor,
    captures: list[FeatureCapture],
    metrics: list["_PairMetrics"],
    teacher_input: Callable[[Tensor], Tensor] | None,
) -> None:
    inputs = batch, batch if teacher_input is None else teacher_input(batch)
    features = []
    for capture, pixel_values in zip(captures, inputs, strict=True):
        weight = capture.view.patch_embedding.weight
        outputs = capture(pixel_values.to(weight.device, weight.dtype)).outputs
        prefix = capture.view.num_prefix_tokens
        tokens = {index: split_tokens(output, prefix)[1].float() for index, output in outputs.items()}
        features.append((tokens, capture.view.grid(*pixel_values.shape[-2:])))
    for pair in metrics:
        pair.add(*features)


class _PairMetrics:
    """The metrics of one pair of blocks."""

    def __init__(self, student: int, teacher: int, projector: nn.Module | None, rule: OutlierRule) -> None:
        self.student_block, self.teacher_block, self.projector = student, teacher, projector
        self.cka, self.cka_others, self.gram = LinearCka(), LinearCka(), GramDistance()
        self.rule, self.overlap = rule, OutlierOverlap(rule)
        self.cosine = PatchCosine(rule) if projector is not None else None
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.grids: tuple[tuple[int, int], tuple[int, int]] | None = None

    def add(self, student_features: _GridFeatures, teacher_features: _GridFeatures) -> None:
        """Adds a batch: for both models the patch tokens (B, N, D) by block, and their grid."""
        (students, grid), (teachers, target) = student_features, teacher_features
        student, reference = students[self.student_block], teachers[self.teacher_block]
        self._keep(student, token_norms(reference))
        self.grids = target, grid
        resized = resize_tokens(student, grid, target).to(reference.device)
        for metric in (self.cka, self.gram):
            metric.add_batch(predictions=resized, references=reference)
        others = ~self.rule.mask(token_norms(reference))
        self.cka_others.add_batch(predictions=resized[others][None], references=reference[others][None])
        # Nearest neighbour, because interpolation would smooth outliers away.
        norms = tokens_to_map(token_norms(student).unsqueeze(-1), grid)
        norms = map_to_tokens(nn.functional.interpolate(norms, size=target, mode="nearest-exact"))[..., 0]
        self.overlap.add_batch(predictions=norms.to(reference.device), references=token_norms(reference))
        if self.cosine is not None:
            weight = next(self.projector.parameters())
            projected = self.projector(resized.to(weight.device, weight.dtype))
            self.cosine.add_batch(predictions=projected.to(reference.device), references=reference)

    def _keep(self, student: Tensor, norms: Tensor) -> None:
        missing = _PLACE_IMAGES - sum(len(tokens) for tokens, _ in self.kept)
        if missing > 0:
            self.kept.append((student[:missing].cpu().clone(), norms[:missing].cpu()))

    def _place_metrics(self) -> dict[str, float | None]:
        tokens, norms = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        places = artifact_places(norms, self.rule)
        metrics = place_metrics(tokens, resize_places(places, *self.grids))
        return metrics if int(places.sum()) >= MIN_PLACES else dict.fromkeys(metrics)

    def result(self) -> dict:
        cka = self.cka.compute() | {"cka_others": self.cka_others.compute()["cka"]}
        metrics = [self.gram, self.overlap, *([self.cosine] if self.cosine is not None else [])]
        blocks = {"teacher_block": self.teacher_block, "student_block": self.student_block}
        values = {name: value for metric in metrics for name, value in metric.compute().items()}
        return blocks | cka | values | self._place_metrics()
