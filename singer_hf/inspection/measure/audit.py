"""The audit: which tokens of a vision transformer are high-norm outliers, in which blocks, and what they cost."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from singer_hf.artifacts.attention import AttentionReader
from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.artifacts.texture import patch_texture
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.block_measures import summarise_blocks
from singer_hf.inspection.measure.token_sums import StreamingSums, measure_batch
from singer_hf.tuner.layer import find_singer_layers, raw_features
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import count_batches, evaluation_mode, is_memory_error, pixel_batches, unwrap_peft
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


def audit(
    model: nn.Module,
    images: Iterable,
    *,
    rule: OutlierRule | None = None,
    name: str | None = None,
    progress: bool = True,
) -> AuditResult:
    """Measures the patch tokens of every block of a vision transformer over a set of images.

    One forward pass per batch, up to the last block; memory does not grow with the number of images and the result
    does not depend on how they are batched. With SiNGER adapters the blocks are measured on the raw features and,
    at every adapter, on the refined features too. The model is used in eval mode on its own device and left as it was.

    Args:
        model: Any vision transformer that :func:`singer_hf.vit.structure.view_vit` accepts, with or without an adapter.
        images: Batches: pixel values (B, 3, H, W) normalised for the model, or dicts that hold them as
            ``"pixel_values"``, as a ``DataLoader`` gives. All of one size.
        rule: What counts as an outlier; the default is median + 10 MAD within the image.
        name: What to call the model; its class by default.
        progress: Whether to show a progress bar.

    Returns:
        The measures; ``result.save("audit.json")`` writes them.

    Raises:
        ValueError: If there are no images, the model is no plain vision transformer, images differ in size, or tokens
            are not finite.
        MemoryError: If not even a single image fits in memory.
    """
    view = view_vit(model)
    run = _Audit(model, view, rule or OutlierRule())
    with evaluation_mode(model), raw_features(run.layers.values()), run:
        bar = tqdm(pixel_batches(images), "audit", count_batches(images), unit="batch", disable=not progress)
        for pixel_values in bar:
            run.add(pixel_values)
        return run.result(name or type(unwrap_peft(model)).__name__)


class _Audit:
    """One audit under way: the hooks on the model and the sums so far."""

    def __init__(self, model: nn.Module, view: ViTView, rule: OutlierRule) -> None:
        self.model, self.view, self.rule = model, view, rule
        self.layers = find_singer_layers(model)
        self.raw, self.refined = StreamingSums(), StreamingSums()
        self.num_images, self.image_size, self.batch_limit = 0, None, None
        self.notes: list[str] = []

    def __enter__(self) -> None:
        self.capture = FeatureCapture(self.view, range(self.view.num_blocks))
        self.attention = AttentionReader(self.view)

    def __exit__(self, *exception: object) -> None:
        self.attention.remove()

    def add(self, pixel_values: Tensor) -> None:
        """Measures a batch, in halves if it does not fit in memory."""
        weight = self.view.patch_embedding.weight
        for part in pixel_values.split(self.batch_limit or len(pixel_values)):
            try:
                self._add_part(part.to(weight.device, weight.dtype))
            except (RuntimeError, MemoryError) as error:
                if not is_memory_error(error):
                    raise
                self._shrink(len(part), error)
                # Leaves the except block first, so that the failed batch is free before the next try.
                retry = part
            else:
                continue
            self.add(retry)

    def _shrink(self, size: int, error: Exception) -> None:
        self.attention.clear()
        if size == 1:
            raise MemoryError("`images` must fit in memory one at a time, got an image that does not") from error
        self.batch_limit = size // 2
        note = f"a batch of {size} images did not fit in memory; went on with batches of {self.batch_limit}"
        self.notes.append(note)
        warnings.warn(note, stacklevel=4)

    def _add_part(self, pixel_values: Tensor) -> None:
        self._check_size(pixel_values)
        if not self.num_images:
            self.attention.check(pixel_values[:1])
        outputs = self.capture(pixel_values).outputs
        prefix = self.view.num_prefix_tokens
        texture = patch_texture(pixel_values, self.view.patch_size)
        patches = [split_tokens(outputs[i], prefix)[1] for i in range(self.view.num_blocks)]
        sums, extremes, mask = measure_batch(patches, texture, self.rule)
        self._check_finite(extremes["highest"])
        sums |= self._attention_sums(mask)
        if self.layers:
            refined = [split_tokens(layer.refine(outputs[i]), prefix)[1] for i, layer in sorted(self.layers.items())]
            refined_sums, refined_extremes, _ = measure_batch(refined, texture, self.rule)
            self.refined.add(refined_sums, refined_extremes)
        self.raw.add(sums, extremes)
        self.num_images += len(pixel_values)
        self.attention.clear()

    def _attention_sums(self, mask: Tensor) -> dict[str, Tensor]:
        """Attention that each block's outliers get in the next one, summed over the images that have some."""
        shares = torch.zeros(3, len(mask), dtype=torch.float64)
        for index, block_mask in enumerate(mask[:-1]):
            if not block_mask.any():
                continue
            received = self.attention.received(index + 1, block_mask)
            if received is not None:
                counts = block_mask.sum(1).double()
                uniform = counts[counts > 0] / (block_mask.shape[1] + self.view.num_prefix_tokens)
                values = (received.double().sum(), uniform.sum(), len(received))
                shares[:, index] = torch.tensor([float(value) for value in values])
        return dict(zip(("attention", "attention_uniform", "attention_images"), shares, strict=True))

    def _check_size(self, pixel_values: Tensor) -> None:
        size = tuple(pixel_values.shape[-2:])
        if self.image_size not in (None, size):
            raise ValueError(
                f"`images` must all have one size, got {size[0]} x {size[1]} after {self.image_size[0]} x "
                f"{self.image_size[1]} pixels; resize or crop them"
            )
        self.image_size = size

    def _check_finite(self, highest: Tensor) -> None:
        if not highest.isfinite().all():
            block = int((~highest.isfinite()).nonzero()[0])
            raise ValueError(
                f"block {block} gives tokens that are not finite in {self.view.patch_embedding.weight.dtype}; load "
                "the model in float32 or bfloat16"
            )

    def result(self, name: str) -> AuditResult:
        """The measures over all batches."""
        if not self.num_images:
            raise ValueError("`images` must hold at least one image, got none")
        grid = self.view.grid(*self.image_size)
        layers = sorted(self.layers)
        blocks = summarise_blocks(
            self.raw, range(self.view.num_blocks), grid, self.rule, self.view, self.attention.notes
        )
        return AuditResult(
            name=name,
            architecture=type(unwrap_peft(self.model)).__name__,
            num_images=self.num_images,
            image_size=self.image_size,
            grid=grid,
            patch_size=self.view.patch_size,
            hidden_size=self.view.hidden_size,
            num_prefix_tokens=self.view.num_prefix_tokens,
            rule=self.rule.to_dict(),
            blocks=blocks,
            refined=summarise_blocks(self.refined, layers, grid, self.rule, self.view) if layers else [],
            notes=self.notes,
        )


def outlier_summary(
    model_or_view: nn.Module | ViTView, pixel_values: Tensor, rule: OutlierRule | None = None
) -> dict[str, float]:
    """A few scalars on the outliers of every block, cheap enough to log during training: one forward pass, norms only.

    Args:
        model_or_view: A vision transformer, or a view of it; its training mode and hooks are left as they are.
        pixel_values: Images (B, 3, H, W), normalised for the model, on any device.
        rule: What counts as an outlier.

    Returns:
        ``outlier_share``, ``p99_over_median`` and ``max_over_median`` of the last block; ``outlier_share_worst`` and
        ``worst_block``, of the block with the largest share; ``outlier_share_block_<i>`` of every block.
    """
    view = model_or_view if isinstance(model_or_view, ViTView) else view_vit(model_or_view)
    norms = patch_norms(view, pixel_values)
    shares = (rule or OutlierRule()).mask(norms).double().mean((1, 2)).tolist()
    last = norms[-1].flatten().sort().values
    median = max(float(last[(len(last) - 1) // 2]), 1e-12)
    worst = max(range(len(shares)), key=shares.__getitem__)
    summary = {
        "outlier_share": shares[-1],
        "p99_over_median": float(last[-(-99 * len(last) // 100) - 1]) / median,
        "max_over_median": float(last[-1]) / median,
        "outlier_share_worst": shares[worst],
        "worst_block": float(worst),
    }
    return summary | {f"outlier_share_block_{index}": share for index, share in enumerate(shares)}


def patch_norms(view: ViTView, pixel_values: Tensor) -> Tensor:
    """L2 norms of the patch tokens after every block, before the final norm: (L, B, N), float32, on the CPU."""
    capture, weight = FeatureCapture(view, range(view.num_blocks)), view.patch_embedding.weight
    with evaluation_mode(view.backbone):
        outputs = capture(pixel_values.to(weight.device, weight.dtype)).outputs
    patches = (split_tokens(outputs[i], view.num_prefix_tokens)[1] for i in range(view.num_blocks))
    return torch.stack([tokens.float().norm(dim=-1) for tokens in patches]).cpu()
