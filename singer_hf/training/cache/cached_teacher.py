"""A teacher's pass that is made once for every cached crop; after that its features come with the batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.training.cache.feature_store import FeatureStore
from singer_hf.vit.features import BlockCall, CapturedFeatures


class CachedTeacher:
    """Stands in for ``distiller.teacher_features``.

    Features are rounded to float16 before they are used for the first time, so it does not matter to the result which
    of them are read and which are computed.

    Args:
        distiller: The distiller of one student, or the leading one of a group.

    Attributes:
        blocks: The teacher blocks whose tokens a step needs, ascending.
        shape: (blocks, tokens, width) of one image.
        store: The cache; to be set before the first batch.

    Raises:
        ValueError: If the teacher's blocks take further values that depend on the image.
    """

    def __init__(self, distiller: FeatureDistiller) -> None:
        self.run = distiller.teacher_features
        view, given = distiller.teacher_view, distiller.teacher_input
        sample = self.run(torch.zeros(2, 3, *given.image_size, device=view.patch_embedding.weight.device))
        self._check_calls(distiller, sample)
        self.blocks, self.calls = sorted(sample.outputs), sample.calls
        first = sample.outputs[self.blocks[0]]
        self.shape, self.dtype = (len(self.blocks), *first.shape[1:]), first.dtype
        self.store: FeatureStore | None = None
        self._batch: tuple[Tensor, Tensor | None] | None = None
        distiller.teacher_features = self.features

    @contextmanager
    def batch(self, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """A context for the images of one training batch; outside of it the teacher runs.

        Args:
            inputs: The batch: ``cached_row`` (B,) and, if all of it is there, ``teacher_tokens`` (B, L, P+N, D).
        """
        self._batch = (inputs["cached_row"], inputs.get("teacher_tokens")) if "cached_row" in inputs else None
        try:
            yield
        finally:
            self._batch = None

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> CapturedFeatures:
        """The features of images (B, 3, H, W), see :meth:`FeatureDistiller.teacher_features`."""
        if self._batch is None:
            return self.run(pixel_values)
        rows, tokens = self._batch
        if tokens is None:
            outputs = self.run(pixel_values).outputs
            tokens = torch.stack([outputs[i] for i in self.blocks], dim=1).half()
            self.store.write(rows.cpu().numpy(), tokens.cpu().numpy())
        outputs = dict(zip(self.blocks, tokens.to(self.dtype).unbind(dim=1), strict=True))
        # The further arguments of a block's call are the same for all images.
        calls = {i: BlockCall(outputs[i - 1], call.args, call.kwargs) for i, call in self.calls.items()}
        return CapturedFeatures(outputs, calls)

    def _check_calls(self, distiller: FeatureDistiller, sample: CapturedFeatures) -> None:
        for batched in distiller.find_batched_values().values() if sample.calls else ():
            if sum(batched) > 1 or not batched[0]:
                raise ValueError(
                    f"`cache_teacher_features` must be left out for {type(distiller.teacher_view.backbone).__name__}, "
                    "whose blocks take further values of each image"
                )
