"""The audit of a vision transformer: its high-norm outlier tokens, the blocks they are in, and their cost."""

import warnings
from collections.abc import Iterable

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from tqdm.auto import tqdm

from singer_hf.artifacts.attention import AttentionCapture
from singer_hf.artifacts.outliers import OutlierRule, norm_statistics, token_norms
from singer_hf.artifacts.texture import patch_variance
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.block_metrics import compute_block_audits, rank_images
from singer_hf.inspection.measure.patch_measurements import PatchMeasurements, measure_batch, outliers_so_far
from singer_hf.tuner.layer import find_singer_layers, flowing_tokens, raw_features
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.inference import count_batches, evaluation_mode, pixel_batches, unwrap_peft
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens
from singer_hf.vit.view import ViTView


def audit(
    model: nn.Module,
    images: Iterable,
    *,
    rule: OutlierRule | None = None,
    name: str | None = None,
    inline: bool = False,
    progress: bool = True,
) -> AuditResult:
    """Measures the patch tokens of every block of a vision transformer over a set of images.

    Runs one forward pass per batch, up to the last block. The metrics are computed at the end from the norms of all
    patches, so they do not depend on the batch size; see
    :class:`singer_hf.inspection.measure.patch_measurements.PatchMeasurements` for the memory. With SiNGER adapters the
    blocks are measured on the raw features and, at every adapter, on the refined features too. ``inline=True``
    measures the model as it runs instead: refined tokens behind every adapter, which all later blocks read. The model
    stays on its device, is used in eval mode, and is left unchanged.

    Args:
        model: Any vision transformer that :func:`singer_hf.vit.structure.view_vit` accepts, with or without adapters.
        images: Batches: pixel values (B, 3, H, W) normalised for the model, or dicts with ``"pixel_values"``, such as
            from a ``DataLoader``. All images have the same size.
        rule: The outlier rule; by default median + 10 MAD within the image.
        name: Name of the model in tables and figures; its class by default.
        inline: Whether the adapters stay active: the audit of a cleaned teacher.
        progress: Whether to show a progress bar.

    Returns:
        The result; ``result.save("audit.json")`` writes it.

    Raises:
        ValueError: If there are no images, the model is not a plain vision transformer, images differ in size, or
            tokens are not finite.
        MemoryError: If a single image does not fit in memory.
    """
    run = _AuditRun(model, view_vit(model), rule or OutlierRule(), inline)
    with evaluation_mode(model), raw_features(run.layers.values()), run.attention:
        bar = tqdm(pixel_batches(images), "audit", count_batches(images), unit="batch", disable=not progress)
        for pixel_values in bar:
            run.add(pixel_values)
        return run.result(name or type(unwrap_peft(model)).__name__)


class _AuditRun:
    """The measurements of an audit that is under way."""

    def __init__(self, model: nn.Module, view: ViTView, rule: OutlierRule, inline: bool) -> None:
        self.model, self.view, self.rule = model, view, rule
        layers = dict(sorted(find_singer_layers(model).items()))
        self.layers, self.flowing = ({}, layers) if inline else (layers, {})
        self.capture, self.attention = FeatureCapture(view, range(view.num_blocks)), AttentionCapture(view)
        self.raw: list[PatchMeasurements] = []
        self.refined: list[PatchMeasurements] = []
        self.attention_shares: list[Tensor] = []
        self.image_size: tuple[int, int] | None = None
        self.batch_limit: int | None = None
        self.notes: list[str] = []

    def add(self, pixel_values: Tensor) -> None:
        """Measures a batch, in halves if it does not fit in memory."""
        weight = self.view.patch_embedding.weight
        for part in pixel_values.split(self.batch_limit or len(pixel_values)):
            try:
                self._add_part(part.to(weight.device, weight.dtype))
            except (RuntimeError, MemoryError) as error:
                if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                    raise
                self._halve_batches(len(part), error)
                # Retried outside of the except block, in which the error still holds the failed batch.
                retry = part
            else:
                continue
            self.add(retry)

    def _halve_batches(self, size: int, error: Exception) -> None:
        self.attention.clear()
        if size == 1:
            raise MemoryError(
                "`images` must fit in memory one at a time, got an image that does not; use smaller images"
            ) from error
        self.batch_limit = size // 2
        note = f"a batch of {size} images did not fit in memory; continued with batches of {self.batch_limit}"
        self.notes.append(note)
        warnings.warn(note, stacklevel=4)

    def _add_part(self, pixel_values: Tensor) -> None:
        self._check_size(pixel_values)
        if not self.raw:
            self.attention.check(pixel_values[:1])
        outputs = flowing_tokens(self.flowing, self.capture(pixel_values).outputs)
        texture = patch_variance(pixel_values, self.view.patch_size).sqrt()
        measurements = self._measure([outputs[i] for i in range(self.view.num_blocks)], texture)
        self._check_finite(measurements.norms)
        shares = self._attention_shares(measurements.outliers.to(pixel_values.device))
        if self.layers:
            seen = outliers_so_far(measurements.outliers)[list(self.layers)]
            refined = [layer.refine(outputs[i]) for i, layer in self.layers.items()]
            self.refined.append(self._measure(refined, texture, seen))
        self.raw.append(measurements)
        self.attention_shares.append(shares)
        self.attention.clear()

    def _measure(self, tokens: list[Tensor], texture: Tensor, seen: Tensor | None = None) -> PatchMeasurements:
        patches = [split_tokens(block, self.view.num_prefix_tokens)[1] for block in tokens]
        return measure_batch(patches, texture, self.rule, seen)

    def _attention_shares(self, outliers: Tensor) -> Tensor:
        """Returns the shares (2, L, B) of the next block's attention that outliers (L, B, N) receive, NaN if unknown.

        The first is that of the patches' attention, the second that of the class token's attention to patches.
        """
        receivers = self.attention.received, self.attention.received_from_class
        shares = torch.full((2, *outliers.shape[:2]), float("nan"), dtype=torch.float64)
        for index, mask in enumerate(outliers[:-1]):
            for part, receive in zip(shares, receivers, strict=True):
                received = receive(index + 1, mask) if mask.any() else None
                if received is not None:
                    part[index, mask.any(1).cpu()] = received.cpu().double()
        return shares

    def _check_size(self, pixel_values: Tensor) -> None:
        size = tuple(pixel_values.shape[-2:])
        if self.image_size not in (None, size):
            raise ValueError(
                f"`images` must all have one size, got {size[0]} x {size[1]} after {self.image_size[0]} x "
                f"{self.image_size[1]} pixels; resize or crop them"
            )
        self.image_size = size

    def _check_finite(self, norms: Tensor) -> None:
        finite = norms.isfinite().all(2).all(1)
        if not finite.all():
            raise ValueError(
                f"block {int((~finite).nonzero()[0])} gives tokens that are not finite in "
                f"{self.view.patch_embedding.weight.dtype}; load the model in float32 or bfloat16"
            )

    def result(self, name: str) -> AuditResult:
        """Computes the result from the measurements of all batches."""
        if not self.raw:
            raise ValueError("`images` must hold at least one image, got none")
        raw, attention = PatchMeasurements.join(self.raw), torch.cat(self.attention_shares, dim=2)
        context = self.view.grid(*self.image_size), self.rule, self.view
        blocks = compute_block_audits(raw, range(self.view.num_blocks), *context, attention, self.attention.notes)
        refined = []
        if self.layers:
            joined = PatchMeasurements.join(self.refined)
            refined = compute_block_audits(joined, list(self.layers), *context, raw=raw)
        return AuditResult(
            name=name,
            architecture=type(unwrap_peft(self.model)).__name__,
            num_images=raw.norms.shape[1],
            image_size=self.image_size,
            grid=context[0],
            patch_size=self.view.patch_size,
            hidden_size=self.view.hidden_size,
            num_prefix_tokens=self.view.num_prefix_tokens,
            rule=self.rule.to_dict(),
            blocks=blocks,
            refined=refined,
            notes=self.notes,
            inline=bool(self.flowing),
            worst_images=rank_images(raw.norms, blocks),
        )


def outlier_summary(
    model_or_view: nn.Module | ViTView, pixel_values: Tensor, rule: OutlierRule | None = None
) -> dict[str, float]:
    """Returns a few scalars on the outliers of every block, for logging during training.

    Runs one forward pass and uses the patch norms only. Training mode and hooks of the model are left unchanged.

    Args:
        model_or_view: A vision transformer, or a view of it.
        pixel_values: Images (B, 3, H, W), normalised for the model, on any device.
        rule: The outlier rule.

    Returns:
        ``outlier_share``, ``p99_over_median`` (:func:`singer_hf.artifacts.outliers.outlier_ratio`) and
        ``max_over_median`` of the last block; ``outlier_share_worst`` and ``worst_block``, of the block with the
        largest share; ``outlier_share_block_<i>`` of every block.
    """
    view = model_or_view if isinstance(model_or_view, ViTView) else view_vit(model_or_view)
    norms = patch_norms(view, pixel_values)
    shares = (rule or OutlierRule()).mask(norms).double().mean((1, 2)).tolist()
    statistics = norm_statistics(norms[-1])
    worst = max(range(len(shares)), key=shares.__getitem__)
    summary = {
        "outlier_share": shares[-1],
        "p99_over_median": statistics["p99_over_median"],
        "max_over_median": statistics["max_over_median"],
        "outlier_share_worst": shares[worst],
        "worst_block": float(worst),
    }
    return summary | {f"outlier_share_block_{index}": share for index, share in enumerate(shares)}


def patch_norms(view: ViTView, pixel_values: Tensor) -> Tensor:
    """Returns the L2 norms of the patch tokens after every block, before the final norm.

    Args:
        view: View of a vision transformer.
        pixel_values: Images (B, 3, H, W), normalised for the model, on any device.

    Returns:
        (L, B, N), float32, on the CPU.
    """
    capture, weight = FeatureCapture(view, range(view.num_blocks)), view.patch_embedding.weight
    with evaluation_mode(view.backbone):
        outputs = capture(pixel_values.to(weight.device, weight.dtype)).outputs
    patches = (split_tokens(outputs[i], view.num_prefix_tokens)[1] for i in range(view.num_blocks))
    return torch.stack([token_norms(tokens) for tokens in patches]).cpu()
