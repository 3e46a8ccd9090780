"""The cleaner: adapters of a teacher trained alone, by L_outlier and L_info, while the refined tokens flow on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from singer_hf.distillation.adapter.objective import AdapterObjective
from singer_hf.distillation.feature_distiller import DistillerOutput
from singer_hf.distillation.student_features import DEFAULT_IMAGE_SIZE
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.vit.features import CapturedFeatures, FeatureCapture
from singer_hf.vit.structure import view_vit


@dataclass
class CleanerOutput(DistillerOutput):
    """Losses of one step. Components are unweighted and averaged over the refined blocks.

    Attributes:
        outlier_loss: L_outlier, scalar.
        info_loss: L_info, scalar; 0 with ``info_weight=0``, where it is not computed.
    """

    outlier_loss: Tensor | None = None
    info_loss: Tensor | None = None


class TeacherCleaner(nn.Module):
    """Trains the adapters of a teacher by their own two terms (SiNGER, arXiv 2509.20986, section 3), no student.

    The teacher runs as it will be used: a refined block is followed by blocks that read its refined tokens, so the
    second of two adapters sees what the first one leaves. The gradient of a term reaches the adapter of its own block
    only. Weights of the teacher are frozen in place, and it stays in eval mode.

    Args:
        teacher: A vision transformer with SiNGER adapters, as from ``get_peft_model``.
        objective: Weights and forms of both terms.

    Raises:
        ValueError: If the teacher has no SiNGER adapters.
    """

    accepts_loss_kwargs = False
    main_input_name = "pixel_values"

    def __init__(self, teacher: nn.Module, objective: AdapterObjective | None = None) -> None:
        super().__init__()
        self.teacher, self.objective = teacher, objective or AdapterObjective()
        self.view, self.layers = view_vit(teacher), dict(sorted(find_singer_layers(teacher).items()))
        if not self.layers:
            raise ValueError("`teacher` must have SiNGER adapters, it has none; add them with `get_peft_model`")
        trained = {id(p) for layer in self.layers.values() for p in layer.adapter_parameters()}
        for parameter in teacher.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        teacher.eval()
        self._captures = {block: self._capture(block) for block in self.layers}
        self._batched = {b: self._find_batched_values(b) for b in self.layers} if self.objective.info_share < 1 else {}

    def forward(self, pixel_values: Tensor) -> CleanerOutput:
        """Computes the losses of images (B, 3, H, W), normalised for the teacher."""
        return self.losses(pixel_values, observe=self.training)

    def losses(self, pixel_values: Tensor, observe: bool) -> CleanerOutput:
        """Computes the losses of images (B, 3, H, W), normalised for the teacher; with ``observe`` gates see them."""
        pixel_values = pixel_values.to(self.view.patch_embedding.weight.dtype)
        chosen = self.objective.draw_images(len(pixel_values), pixel_values.device) if observe else None
        terms = [self._terms(block, pixel_values, observe, chosen) for block in self.layers]
        outlier, info = (torch.stack(values).mean() for values in zip(*terms, strict=True))
        loss = self.objective.outlier_weight * outlier + self.objective.info_weight * info
        return CleanerOutput(loss=loss, outlier_loss=outlier, info_loss=info)

    def train(self, mode: bool = True) -> "TeacherCleaner":
        """Sets whether the gates observe the images; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @contextmanager
    def attached(self) -> Iterator[None]:
        """A context in which the hooks stay on the teacher between steps, as compilation needs."""
        with ExitStack() as stack:
            for capture in self._captures.values():
                stack.enter_context(capture)
            yield

    def _capture(self, block: int) -> FeatureCapture:
        following = [block + 1] if block + 1 < self.view.num_blocks else []
        return FeatureCapture(self.view, [block, *following], calls=following)

    @torch.no_grad()
    def _features(self, block: int, pixel_values: Tensor) -> CapturedFeatures:
        """Raw tokens after ``block`` and the next one, with the adapters of the blocks before active."""
        with raw_features(layer for index, layer in self.layers.items() if index >= block):
            return self._captures[block](pixel_values)

    def _find_batched_values(self, block: int) -> dict[int, list[bool]]:
        with raw_features(self.layers.values()):
            return self._captures[block].batched_values(self.view.image_size or DEFAULT_IMAGE_SIZE)

    def _terms(
        self, block: int, pixel_values: Tensor, observe: bool, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        layer, prefix = self.layers[block], self.view.num_prefix_tokens
        features = self._features(block, pixel_values)
        raw = features.outputs[block]
        if observe:
            layer.observe(raw)
        refined, grid = layer.refine(raw.float()), self.view.grid(*pixel_values.shape[-2:])
        outlier = self.objective.outlier_term(layer, refined[:, prefix:], raw[:, prefix:], grid)
        if not self.objective.info_weight:
            return outlier, outlier * 0
        if chosen is not None:
            features, refined = features.select(chosen, self._batched[block]), refined[chosen]
        return outlier, self._info_term(block, refined, features)

    def _info_term(self, block: int, refined: Tensor, features: CapturedFeatures) -> Tensor:
        layer, prefix, raw = self.layers[block], self.view.num_prefix_tokens, features.outputs[block]
        if block + 1 not in features.calls:
            return self.objective.info_term(layer, refined, raw, raw, prefix)
        following = self.layers.get(block + 1)
        with raw_features([following] if following else []):
            output = features.calls[block + 1].replay(self.view.blocks[block + 1], refined)
        return self.objective.info_term(layer, output, features.outputs[block + 1], raw, prefix)
