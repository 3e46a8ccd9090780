"""Similarity of the features of a student and a teacher, as `evaluate` metrics."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from singer_hf.artifacts.gram import gram_matrix
from singer_hf.artifacts.outliers import OutlierRule, row_median, token_norms
from singer_hf.artifacts.streaming_metric import NORMS, StreamingMetric
from singer_hf.vit.inference import to_float64


class LinearCka(StreamingMetric):
    """Linear centred kernel alignment (CKA) of patch tokens, from unbiased estimates on minibatches.

    ``Σ HSIC₁(X, Y) / sqrt(Σ HSIC₁(X, X) Σ HSIC₁(Y, Y))`` over minibatches of tokens, with the unbiased HSIC₁ of Song
    et al. 2012 (Nguyen, Raghu, Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021). The
    minibatches have a fixed size, so the result does not depend on the batches that are added. It is about 0 for
    unrelated features (it can be slightly negative) and 1 for features equal up to rotation and scale.

    Args:
        minibatch_size: Tokens per minibatch, at least 4.
        **kwargs: For ``evaluate.Metric``.

    ``compute`` returns ``{"cka": float}``; the inputs are patch tokens (B, N, D_S) and (B, N, D_T).

    Raises:
        ValueError: If ``minibatch_size`` is less than 4.
    """

    _description = "Linear CKA of patch tokens, unbiased, in minibatches (Nguyen et al. 2021)."

    def __init__(self, minibatch_size: int = 1024, **kwargs: Any) -> None:
        if not minibatch_size >= 4:
            raise ValueError(f"`minibatch_size` must be at least 4, got {minibatch_size!r}")
        super().__init__(**kwargs)
        self.minibatch_size = minibatch_size

    def _start(self) -> dict[str, Any]:
        return {"hsic": torch.zeros(3, dtype=torch.float64), "waiting": None}

    def _update(self, predictions: Tensor, references: Tensor) -> None:
        rows = [predictions.flatten(0, 1), references.flatten(0, 1)]
        if self._sums["waiting"] is not None:
            rows = [torch.cat(pair) for pair in zip(self._sums["waiting"], rows, strict=True)]
        while len(rows[0]) >= self.minibatch_size:
            self._sums["hsic"] += _hsic_triple(*(tokens[: self.minibatch_size] for tokens in rows))
            rows = [tokens[self.minibatch_size :] for tokens in rows]
        self._sums["waiting"] = [tokens.clone() for tokens in rows]

    def _finish(self) -> dict[str, float | None]:
        hsic, waiting = self._sums["hsic"], self._sums["waiting"]
        if len(waiting[0]) >= 4:
            hsic = hsic + _hsic_triple(*waiting)
        denominator = float((hsic[1] * hsic[2]).clamp(min=0).sqrt())
        return {"cka": float(hsic[0]) / denominator if denominator else None}


class GramDistance(StreamingMetric):
    """Root mean square difference of the patch Gram matrices ``G(X) = X̄ X̄ᵀ`` (cosine similarities) of two models.

    Per image ``‖G(S) - G(T)‖_F / N``, mean over images; in [0, 2].

    ``compute`` returns ``{"gram_distance": float}``; the inputs are patch tokens (B, N, D_S) and (B, N, D_T).
    """

    _description = "Root mean square difference of patch cosine similarities, mean over images."

    def _start(self) -> dict[str, Any]:
        return {"distance": 0.0, "images": 0}

    def _update(self, predictions: Tensor, references: Tensor) -> None:
        difference = gram_matrix(predictions) - gram_matrix(references)
        self._sums["distance"] += float(to_float64(difference.square().mean((1, 2)).sqrt()).sum())
        self._sums["images"] += len(predictions)

    def _finish(self) -> dict[str, float | None]:
        return {"gram_distance": self._sums["distance"] / self._sums["images"]}


class PatchCosine(StreamingMetric):
    """Cosine similarity of the student's projected patch tokens to the teacher's patch tokens.

    ``compute`` returns means: ``cosine`` over all patches, ``cosine_outliers`` over the teacher's outliers (None if
    there are none) and ``cosine_others`` over all other patches. The inputs are tokens (B, N, D_T) of the teacher's
    width.

    Args:
        rule: The outlier rule for the teacher's tokens.
        **kwargs: For ``evaluate.Metric``.
    """

    _description = "Patch-wise cosine similarity, at the teacher's outliers and elsewhere."

    def __init__(self, rule: OutlierRule | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule = rule or OutlierRule()

    def _start(self) -> dict[str, Any]:
        return {"cosine": 0.0, "outliers": 0.0, "patches": 0, "outlier_patches": 0}

    def _update(self, predictions: Tensor, references: Tensor) -> None:
        if predictions.shape != references.shape:
            raise ValueError(
                f"`predictions` must have the teacher's width, got shapes {tuple(predictions.shape)} and "
                f"{tuple(references.shape)}; pass the student's tokens through its projector"
            )
        cosine = to_float64(F.cosine_similarity(predictions, references, dim=-1))
        mask = self.rule.mask(token_norms(references)).to(cosine.device)
        self._sums["cosine"] += float(cosine.sum())
        self._sums["outliers"] += float(cosine[mask].sum())
        self._sums["patches"] += cosine.numel()
        self._sums["outlier_patches"] += int(mask.sum())

    def _finish(self) -> dict[str, float | None]:
        sums, outliers = self._sums, self._sums["outlier_patches"]
        return {
            "cosine": sums["cosine"] / sums["patches"],
            "cosine_outliers": sums["outliers"] / outliers if outliers else None,
            "cosine_others": (sums["cosine"] - sums["outliers"]) / max(sums["patches"] - outliers, 1),
        }


class OutlierOverlap(StreamingMetric):
    """Overlap of the outliers of a student and its teacher, from their patch norms.

    ``compute`` returns ``iou`` (patches that are outliers in both over patches that are outliers in either, None if
    there are none), ``inherited`` (share of the teacher's outliers that are outliers in the student, None if there are
    none), ``correlation`` (Pearson correlation of the norms over all patches, each divided by the median of its
    image), ``student_share`` and ``teacher_share`` (shares of outliers). The inputs are norms (B, N).

    Args:
        rule: The outlier rule for both models.
        **kwargs: For ``evaluate.Metric``.
    """

    _description = "Overlap and correlation of the outlier maps of a student and its teacher."
    _feature = NORMS

    def __init__(self, rule: OutlierRule | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule = rule or OutlierRule()

    def _start(self) -> dict[str, Any]:
        return {"counts": torch.zeros(5, dtype=torch.float64), "moments": torch.zeros(5, dtype=torch.float64)}

    def _update(self, predictions: Tensor, references: Tensor) -> None:
        student, teacher = self.rule.mask(predictions), self.rule.mask(references)
        counts = [(student & teacher).sum(), (student | teacher).sum(), student.sum(), teacher.sum(), student.numel()]
        self._sums["counts"] += torch.tensor([float(count) for count in counts], dtype=torch.float64)
        x, y = (to_float64(_over_median(norms)).flatten() for norms in (predictions, references))
        moments = [x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
        self._sums["moments"] += torch.stack(moments).cpu()

    def _finish(self) -> dict[str, float | None]:
        both, either, student, teacher, total = self._sums["counts"].tolist()
        return {
            "iou": both / either if either else None,
            "inherited": both / teacher if teacher else None,
            "correlation": _correlation(self._sums["moments"], total),
            "student_share": student / total,
            "teacher_share": teacher / total,
        }


def unbiased_hsic(left: Tensor, right: Tensor) -> Tensor:
    """Returns the unbiased HSIC₁ of two kernel matrices (n, n), n >= 4, as a scalar tensor (Song et al. 2012, eq. 5).

    The diagonals have no influence.
    """
    n = len(left)
    left, right = (kernel - torch.diag(kernel.diagonal()) for kernel in (left, right))
    trace = (left * right).sum()
    sums = left.sum() * right.sum() / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (left.sum(0) @ right.sum(0))
    return (trace + sums - cross) / (n * (n - 3))


def _hsic_triple(predictions: Tensor, references: Tensor) -> Tensor:
    """Returns HSIC₁ of (X, Y), (X, X) and (Y, Y), float64."""
    # A common shift of the tokens does not change HSIC₁; removing it improves the precision.
    x, y = (to_float64(tokens) for tokens in (predictions, references))
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x @ x.T, y @ y.T
    return torch.stack([unbiased_hsic(x, y), unbiased_hsic(x, x), unbiased_hsic(y, y)]).cpu()


def _over_median(norms: Tensor) -> Tensor:
    return norms / row_median(norms).clamp(min=1e-12)


def _correlation(moments: Tensor, total: float) -> float | None:
    mean_x, mean_y, square_x, square_y, product = (moments / total).tolist()
    variances = (square_x - mean_x**2) * (square_y - mean_y**2)
    return (product - mean_x * mean_y) / variances**0.5 if variances > 1e-24 else None
